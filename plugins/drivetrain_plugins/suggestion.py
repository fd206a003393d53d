"""The "did you mean" of error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """Give "; did you mean 'x'?" for the known name nearest to `got`, or nothing if none is near."""
    near = difflib.get_close_matches(got, sorted(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
