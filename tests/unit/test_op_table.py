"""Which implementation serves each op, asked of a child process."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from drivetrain.errors import BackendError
from drivetrain_server.op_table import OpRow, op_table, rows_of


class Reference:
    def norm(self): ...

    def linear(self): ...

    def _helper(self): ...


Reference.__module__ = Reference.norm.__module__ = Reference.linear.__module__ = "drivetrain_plugins.contract.ops"


class Fast(Reference):
    def norm(self): ...


def test_own_and_reference_implementations_are_told_apart():
    part = Fast()
    device = SimpleNamespace(
        executor=lambda: None, runtime=part, allocator=part, attention=part, communicator=Reference(), ops=part
    )
    rows = {row.name: row for row in rows_of(device)}
    assert list(rows) == ["runtime", "allocator", "attention", "communicator", "ops", "ops.linear", "ops.norm"]
    assert rows["ops.norm"] == OpRow(name="ops.norm", implementation=f"{Fast.__module__}:Fast.norm", reference=False)
    assert rows["ops.linear"].reference
    assert rows["communicator"].reference


def test_backend_that_cannot_be_opened_is_an_error_with_its_own_words(tmp_path, monkeypatch):
    (tmp_path / "acme.py").write_text("raise RuntimeError('no driver')\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(BackendError, match="acme:Backend could not open its device: RuntimeError: no driver"):
        op_table("acme:Backend", {})


def test_backend_that_hangs_is_ended(tmp_path, monkeypatch):
    (tmp_path / "acme.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(BackendError, match=r"acme:Backend did not open its device within 0\.5 s"):
        op_table("acme:Backend", {}, time_limit_s=0.5)


def test_device_with_its_own_executor_shows_that_and_nothing_else():
    device = SimpleNamespace(executor=Fast)
    assert rows_of(device) == [OpRow(name="executor", implementation=f"{__name__}:Fast", reference=False)]
