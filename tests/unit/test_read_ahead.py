"""Files are asked for early, and only where that can help."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from drivetrain.weights import read_ahead as module
from drivetrain.weights.read_ahead import read_ahead


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    asked: list[tuple[str, int, int]] = []

    def advise(fd: int, start: int, length: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_WILLNEED
        asked.append((Path(os.readlink(f"/proc/self/fd/{fd}")).name, start, length))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(module, "_CHUNK_BYTES", 8)
    return asked


def test_every_part_of_every_weight_file_is_asked_for(tmp_path: Path, advised: list[tuple[str, int, int]]) -> None:
    for name, size in (("b.safetensors", 4), ("a.safetensors", 17), ("pytorch_model.bin", 50)):
        (tmp_path / name).write_bytes(bytes(size))
    thread = read_ahead(tmp_path)
    assert thread is not None
    thread.join()
    chunks = [("a.safetensors", start, 8) for start in (0, 8, 16)]
    assert advised == [*chunks, ("b.safetensors", 0, 8)]
    thread = read_ahead(tmp_path / "b.safetensors")
    assert thread is not None
    thread.join()
    assert advised[-1] == ("b.safetensors", 0, 8)


def test_nothing_is_asked_for_without_files_or_with_more_than_memory_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_ahead(tmp_path) is None
    assert read_ahead(tmp_path / "absent.gguf") is None
    (tmp_path / "a.safetensors").write_bytes(bytes(100))
    monkeypatch.setattr(module, "_memory_bytes", lambda: 199)
    assert read_ahead(tmp_path) is None
