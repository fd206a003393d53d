"""Kernels that are compiled later: a moment at a time, and one that fails stops nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton")

from drivetrain_triton.device import compilation


class Work:
    """What `compile_all` gives: done after so many looks."""

    def __init__(self, variants: Iterable[Any]) -> None:
        self.variants = list(variants)
        self.looks = 2 if self.variants else 0

    @property
    def remaining(self) -> int:
        self.looks -= 1
        return max(self.looks, 0)

    def wait(self) -> None:
        if any(variant.kernel.fails for variant in self.variants):
            raise RuntimeError("1 of 1 kernels did not compile; the first is penalties_kernel: no")


def variant(name: str, *, fails: bool = False, **constants: object) -> Any:
    return SimpleNamespace(kernel=SimpleNamespace(__name__=name, fails=fails), constexprs=constants, key=name)


def test_special_kernels_follow_one_by_one_and_a_failure_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun: list[list[str]] = []

    def compile_all(variants: Iterable[Any], *, max_workers: int) -> Work:
        work = Work(variants)
        begun.append([found.kernel.__name__ for found in work.variants])
        return work

    monkeypatch.setattr(compilation, "compile_all", compile_all)
    monkeypatch.setattr(compilation, "prepare_kernels", lambda variants: None)
    monkeypatch.setattr(compilation, "_POLL_S", 0.0)
    variants = [
        variant("draw_kernel", FILTERED=True),
        variant("penalties_kernel", fails=True),
        variant("decode_kernel", SHARED=True),
    ]
    compiling = compilation.Compiling(variants, lambda *_: None)
    compiling.wait()
    assert begun == [["draw_kernel"]]
    turns = 1
    with caplog.at_level(logging.WARNING):
        while compiling.one_more():
            turns += 1
    assert begun[1:] == [["decode_kernel"], ["penalties_kernel"]]
    assert turns == 4, "each takes two moments"
    assert "penalties_kernel" in caplog.text
    assert "tries again" in caplog.text
    assert not compiling.one_more()
