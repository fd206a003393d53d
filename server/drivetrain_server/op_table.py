"""Which implementation serves each op of a backend: `python -m drivetrain_server.op_table MODULE:CLASS OPTIONS`.

It opens the device, so `drivetrain backends --ops` runs it in a process of its own, where a driver may hang or crash.
"""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import msgspec

from drivetrain.errors import BackendError

if TYPE_CHECKING:
    from drivetrain_plugins.contract.backend import Backend, Device

CONTRACT = "drivetrain_plugins."
TIME_LIMIT_S = 60.0
PARTS = ("runtime", "allocator", "attention", "communicator", "ops")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRow:
    """One part or op.

    Attributes:
        name: a part such as `attention`, or an op such as `ops.norm`.
        implementation: the class or function that serves it, with its module.
        reference: it is the contract's own torch reference.
    """

    name: str
    implementation: str
    reference: bool


def rows_of(device: Device) -> list[OpRow]:
    """Every part of an opened device, then every op; of a device with its own executor, only that."""
    executor = device.executor()
    if executor is not None:
        return [_row("executor", type(executor))]
    parts = [_row(name, cast("object", type(getattr(device, name)))) for name in PARTS]
    ops = type(device.ops)
    names = [name for name, _ in inspect.getmembers(ops, inspect.isfunction) if not name.startswith("_")]
    return parts + [_row(f"ops.{name}", getattr(ops, name)) for name in sorted(names)]


def op_table(backend: str, options: Mapping[str, object], *, time_limit_s: float = TIME_LIMIT_S) -> list[OpRow]:
    """Open `backend` ("module:class") in a child process and list its implementations.

    Raises:
        BackendError: it could not be opened, with its own words.
    """
    command = [sys.executable, "-P", "-m", "drivetrain_server.op_table", backend, json.dumps(dict(options))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=time_limit_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise BackendError(f"{backend} did not open its device within {time_limit_s:g} s") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise BackendError(f"{backend} could not open its device: {said[0]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1], type=list[OpRow])


def _row(name: str, implementation: object) -> OpRow:
    module = str(getattr(implementation, "__module__", ""))
    qualified = str(getattr(implementation, "__qualname__", implementation))
    return OpRow(name=name, implementation=f"{module}:{qualified}", reference=module.startswith(CONTRACT))


def main(backend: str, options: str) -> None:
    """Print the table as one line of JSON."""
    module, _, name = backend.partition(":")
    made = cast("type[Backend]", getattr(importlib.import_module(module), name))

    from drivetrain_plugins.contract.backend import RankInfo

    device = made().open(RankInfo(), json.loads(options))
    try:
        print(msgspec.json.encode(rows_of(device)).decode())
    finally:
        device.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
