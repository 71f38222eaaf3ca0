"""Training objectives. The directory is the registry: `<name>.py` with a `METHOD` in it is the method `<name>`."""

from __future__ import annotations

import importlib
import pkgutil

from verl_ext.errors import UserError, nearest
from verl_ext.losses.base import Method

# Never imported by a look-up: verl_bridge loads verl, and configurations are checked without it.
NOT_METHODS = frozenset({"base", "verl_bridge"})


def get_method(name: str) -> Method:
    """The objective called `name`. Raises UserError, with the nearest and all valid names, when there is none."""
    method = _load(name) if name in _module_names() else None
    if method is None:
        valid = method_names()
        raise UserError(
            f"There is no method '{name}': verl_ext/losses has no file of that name with a METHOD in it. "
            f"Valid names: {', '.join(valid)}{nearest(name, valid)}"
        )
    return method


def method_names() -> list[str]:
    """All method names, sorted."""
    return [name for name in _module_names() if _load(name) is not None]


def _module_names() -> list[str]:
    found = {module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg}
    return sorted(found - NOT_METHODS)


def _load(name: str) -> Method | None:
    method = getattr(importlib.import_module(f"{__name__}.{name}"), "METHOD", None)
    return method if isinstance(method, Method) else None
