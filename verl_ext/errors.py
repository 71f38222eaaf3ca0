"""The one error type that a user is meant to read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend: the message names the subject, the reason and the remedy."""


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the closest of `allowed`, or an empty string when none is close."""
    matches = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""
