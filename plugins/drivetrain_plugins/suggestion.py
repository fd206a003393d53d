"""The "did you mean" of error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping


def did_you_mean(got: str, known: Iterable[str], also_called: Mapping[str, Iterable[str]] | None = None) -> str:
    """Give "; did you mean 'x'?" for the known name nearest to `got`, or nothing if none is near.

    Args:
        known: names that exist.
        also_called: other words for some of them, by name; several names may share one, and are then all given.
    """
    names: dict[str, set[str]] = {name: {name} for name in known}
    for name, words in (also_called or {}).items():
        for word in words:
            names.setdefault(word, set()).add(name)
    near = difflib.get_close_matches(got.lower(), sorted(names), 1)
    return f"; did you mean {' or '.join(map(repr, sorted(names[near[0]])))}?" if near else ""
