"""Asks the system for a model's files early, so that the disk is at work while libraries are imported."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

_CHUNK_BYTES = 64 << 20
_MEMORY_SHARE = 0.5
"""Larger files than this share of the memory would push each other out again."""


def read_ahead(path: Path) -> threading.Thread | None:
    """Begin to read the weights of a model folder, or a .gguf file, into the system's cache.

    Returns:
        The thread that asks for them, or None where the system takes no such advice or memory is too small. What
        cannot be read is left to whoever opens it properly.
    """
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    try:
        num_bytes = sum(file.stat().st_size for file in files)
    except OSError:
        return None
    if not hasattr(os, "posix_fadvise") or not 0 < num_bytes <= _memory_bytes() * _MEMORY_SHARE:
        return None
    thread = threading.Thread(target=_advise, args=(files,), name="read ahead", daemon=True)
    thread.start()
    return thread


def _advise(files: Sequence[Path]) -> None:
    for path in files:
        try:
            with path.open("rb", buffering=0) as file:
                for start in range(0, path.stat().st_size, _CHUNK_BYTES):
                    os.posix_fadvise(file.fileno(), start, _CHUNK_BYTES, os.POSIX_FADV_WILLNEED)
        except OSError:
            return


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
