"""What a process that compiles kernels and the one that it works for say to each other: lines of JSON.

It is told one `CompileJob`, then numbers of variants. It says `Ready`, then one `Compiled` a number. Imports no torch.
"""

from __future__ import annotations

import msgspec

MAX_LINE_BYTES = 1 << 16


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """It has listed so many kernels, and compiles what it is told."""

    kernels: int


class Compiled(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """It is done with one kernel.

    Attributes:
        index: as it was told.
        hash: Triton's, under which the code now lies in the cache on disk; empty if it did not compile.
        error: why it did not compile.
    """

    index: int
    hash: str = ""
    error: str = ""


Word = Ready | Compiled


def line_of(word: Word) -> bytes:
    """A word as it is sent."""
    return msgspec.json.encode(word) + b"\n"
