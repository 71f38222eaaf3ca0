"""The directory is the registry, and reading it loads no torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from verl_ext import losses
from verl_ext.errors import UserError
from verl_ext.losses import get_method, method_names
from verl_ext.losses.base import Method

METHOD_FILE = """
from verl_ext.losses.sft import SftParams, sft_loss
from verl_ext.losses.base import Method
METHOD = Method(loss=sft_loss, params=SftParams, data="samples", needs=frozenset({"rewards"}))
"""


@pytest.fixture
def extra_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(losses, "__path__", [*losses.__path__, str(tmp_path)])
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        name = f"verl_ext.losses.{path.stem}"
        if getattr(sys.modules.get(name), "__file__", None) == str(path):
            del sys.modules[name]
            losses.__dict__.pop(path.stem, None)


def test_the_methods_of_the_package_are_found() -> None:
    assert {"sft", "dft", "iw_sft"} <= set(method_names())
    assert method_names() == sorted(method_names())
    assert all(isinstance(get_method(name), Method) for name in method_names())
    assert get_method("iw_sft").needs == {"ref_log_probs"} and get_method("sft").needs == frozenset()


def test_an_unknown_name_is_refused_with_the_nearest_and_all_valid_names() -> None:
    with pytest.raises(UserError, match=r"'iw-sft'.*Valid names: .*dft, .*iw_sft, .*sft.*did you mean 'iw_sft'\?"):
        get_method("iw-sft")


@pytest.mark.parametrize("name", ["base", "verl_bridge", "", "__init__", "base.LossInputs"])
def test_what_is_not_a_method_is_refused(name: str) -> None:
    assert name not in method_names()
    with pytest.raises(UserError, match="There is no method"):
        get_method(name)


def test_a_file_with_a_method_in_it_is_a_method_and_one_without_is_not(extra_directory: Path) -> None:
    (extra_directory / "added_objective.py").write_text(METHOD_FILE)
    (extra_directory / "not_an_objective.py").write_text("METHOD = 'a string'\n")
    assert get_method("added_objective").needs == {"rewards"}
    assert "added_objective" in method_names() and "not_an_objective" not in method_names()
    with pytest.raises(UserError, match="There is no method 'not_an_objective'"):
        get_method("not_an_objective")


def test_the_bridge_to_verl_is_never_imported_by_a_look_up(extra_directory: Path) -> None:
    (extra_directory / "verl_bridge.py").write_text("raise AssertionError('imported')\n")
    assert "verl_bridge" not in method_names()


def test_looking_up_every_method_and_building_its_parameters_loads_neither_torch_nor_verl() -> None:
    code = (
        "import sys; from verl_ext.losses import get_method, method_names\n"
        "for name in method_names(): get_method(name).params()\n"
        "loaded = {'torch', 'verl', 'ray', 'vllm'} & set(sys.modules); sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
