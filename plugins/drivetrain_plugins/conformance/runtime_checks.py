"""Staging, ordering, results and capture of a device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from drivetrain_plugins.conformance.check import check, need, require
from drivetrain_plugins.conformance.subject import Subject, from_ints
from drivetrain_plugins.contract.batch import Int32Array
from drivetrain_plugins.contract.runtime import Replay

_SIZE = 4096
_ROUNDS = 16


def _buffer(subject: Subject, size: int = _SIZE) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.int32, device=subject.parts.torch_device)


def _ints(subject: Subject, size: int = _SIZE) -> Int32Array:
    return subject.randint(-(2**31), 2**31 - 1, size).to(torch.int32).numpy()


def _fetched(subject: Subject, **tensors: torch.Tensor) -> dict[str, Any]:
    return subject.parts.runtime.fetch(tensors).wait()


@check()
def stage_may_be_followed_by_changes_of_the_host_buffer(subject: Subject) -> None:
    """One host buffer is filled and staged again and again without waiting; every device buffer has its own values."""
    runtime = subject.parts.runtime
    host = np.zeros(_SIZE, np.int32)
    buffers = [_buffer(subject) for _ in range(_ROUNDS)]
    sent: list[Int32Array] = []
    for buffer in buffers:
        sent.append(_ints(subject))
        host[:] = sent[-1]
        runtime.stage(host, buffer)
        host[:] = -7
    for number, (buffer, values) in enumerate(zip(buffers, sent, strict=True)):
        got = _fetched(subject, x=buffer)["x"]
        require(
            np.array_equal(got, values),
            f"runtime.stage: buffer {number} differs from what was staged; the host buffer was changed after stage "
            "returned, which it may be",
        )


@check()
def stage_writes_only_the_first_elements(subject: Subject) -> None:
    """A short array leaves the rest of its destination alone; an empty one leaves it all."""
    buffer = _buffer(subject)
    values = _ints(subject)
    subject.stage(values, buffer)
    subject.stage(values[:5] ^ 1, buffer)
    subject.stage(values[:0], buffer)
    expected = values.copy()
    expected[:5] ^= 1
    require(
        np.array_equal(_fetched(subject, x=buffer)["x"], expected), "runtime.stage: wrote outside its array's length"
    )


@check()
def uploads_may_be_followed_by_changes_of_the_host_tensor(subject: Subject) -> None:
    """Weights of any shape, and parts of them, arrive in the device's type; the host tensor may change at once."""
    runtime = subject.parts.runtime
    uploaded: list[tuple[torch.Tensor, torch.Tensor]] = []
    for dtype in subject.dtypes:
        for shape in ((1 << 16,), (97, 1031), (1, 1)):
            host = subject.randn(*shape)
            part = host[:, 3:1001] if shape[-1] > 1001 and len(shape) > 1 else host
            device_x = subject.put(torch.full(part.shape, float("nan")), dtype)
            expected = part.to(device_x.dtype, copy=True)
            runtime.upload(part, device_x)
            host.fill_(7.0)
            uploaded.append((device_x, expected))
    for device_x, expected in uploaded:
        got = subject.get(device_x)
        require(
            torch.equal(got, expected),
            f"runtime.upload: a float32 tensor of {list(expected.shape)} did not arrive as {expected.dtype}",
        )


@check()
def staging_and_ops_run_in_order(subject: Subject) -> None:
    """An op between two stagings of one buffer sees the first."""
    buffer = _buffer(subject)
    values = [_ints(subject) >> 1 for _ in range(_ROUNDS)]
    seen: list[torch.Tensor] = []
    for array in values:
        subject.stage(array, buffer)
        seen.append(buffer + 1)
    for number, (tensor, array) in enumerate(zip(seen, values, strict=True)):
        got = _fetched(subject, x=tensor)["x"]
        require(
            np.array_equal(got, array + 1), f"runtime.stage: op {number} saw values staged before or after its turn"
        )


@check()
def fetched_tensors_may_be_overwritten(subject: Subject) -> None:
    """Work issued after `fetch` does not change what it brings; types, names and shapes arrive as they are."""
    runtime = subject.parts.runtime
    ids, floats = _ints(subject), subject.randn(33, 3)
    ids_device = from_ints(ids).to(subject.device.torch_device, copy=True)
    floats_device = subject.put(floats)
    fetches = runtime.fetch({"ids": ids_device, "floats": floats_device})
    ids_device.fill_(5)
    floats_device.fill_(float("nan"))
    later = runtime.fetch({"ids": ids_device})
    got = fetches.wait()
    require(set(got) == {"ids", "floats"}, f"runtime.fetch: got names {sorted(got)}, expected floats and ids")
    require(got["ids"].dtype == np.int32, f"runtime.fetch: an int32 tensor arrived as {got['ids'].dtype}")
    require(np.array_equal(got["ids"], ids), "runtime.fetch: brought values that were written after the call")
    require(np.array_equal(got["floats"], floats.numpy()), "runtime.fetch: float32 values did not arrive as they are")
    require(bool((later.wait()["ids"] == 5).all()), "runtime.fetch: a later fetch did not see the later write")
    require(fetches.ready() is True, "fetch.ready: not True after wait")
    require(np.array_equal(fetches.wait()["ids"], ids), "fetch.wait: a second call gives other values")


@check()
def synchronize_waits(subject: Subject) -> None:
    """After it, every earlier fetch is ready."""
    buffer = _buffer(subject)
    subject.stage(_ints(subject), buffer)
    fetches = [subject.parts.runtime.fetch({"x": buffer + number}) for number in range(_ROUNDS)]
    subject.device.runtime.synchronize()
    require(all(fetch.ready() for fetch in fetches), "runtime.synchronize: returned before all results had arrived")


def _replays(subject: Subject) -> None:
    source, out = _buffer(subject, 64), _buffer(subject, 64)
    sums: list[torch.Tensor] = []

    def step() -> None:
        made = source * 2 + 1
        out.copy_(made)
        sums.append(made.sum(dim=0, keepdim=True))

    step()
    replay = subject.parts.runtime.capture(step)
    total = sums[-1]
    for _ in range(4):
        values = _ints(subject, 64) >> 8
        subject.stage(values, source)
        out.fill_(-1)
        replay()
        for attempt in ("the first", "a second"):
            got = _fetched(subject, out=out, total=sums[-1] if not subject.capabilities.graphs else total)
            require(
                np.array_equal(got["out"], values * 2 + 1),
                f"runtime.capture: {attempt} replay did not read its buffers anew",
            )
            expected = int((values.astype(np.int64) * 2 + 1).sum())
            require(
                int(got["total"][0]) == expected,
                f"runtime.capture: a tensor made inside holds {int(got['total'][0])}, expected {expected}",
            )
            replay()


@check()
def a_recorded_step_reads_its_buffers_anew(subject: Subject) -> None:
    """`capture` gives something that does the step's work again on changed buffers, with or without graphs."""
    _replays(subject)


@check("graphs")
def captures_do_not_disturb_each_other(subject: Subject) -> None:
    """Several recordings replayed in turn, with eager work and staging in between."""
    need(subject.parts.capabilities.graphs, "capabilities.graphs is False")
    buffers = [_buffer(subject, 32 * (index + 1)) for index in range(4)]
    outs = [torch.zeros_like(buffer) for buffer in buffers]
    replays: list[Replay] = []
    for index, (buffer, out) in enumerate(zip(buffers, outs, strict=True)):

        def step(buffer: torch.Tensor = buffer, out: torch.Tensor = out, factor: int = index + 2) -> None:
            out.copy_(buffer * factor)

        step()
        replays.append(subject.device.runtime.capture(step))
    for turn in (0, 2, 1, 3, 3, 0):
        values = [_ints(subject, len(buffer)) >> 8 for buffer in buffers]
        for array, buffer, out in zip(values, buffers, outs, strict=True):
            subject.stage(array, buffer)
            out.fill_(turn)
        replays[turn]()
        for index, out in enumerate(outs):
            expected = values[index] * (index + 2) if index == turn else np.full(len(out), turn)
            got = _fetched(subject, x=out)["x"]
            require(np.array_equal(got, expected), f"runtime.capture: replay of recording {turn} left {index} wrong")
