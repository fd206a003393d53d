"""A device that captures steps as a GPU does: a replay repeats the recorded ops on the same tensors, and no Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from drivetrain_plain import PlainDevice, PlainRuntime
from drivetrain_plugins.contract.runtime import Replay


class _Tape(TorchDispatchMode):
    """Runs ops and remembers each with its arguments and results."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.ops.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, recorded in self.ops:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(recorded), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class ReplayingRuntime(PlainRuntime):
    """Counts captures and replays."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.captures = 0
        self.replays = 0

    def capture(self, step: Callable[[], None]) -> Replay:
        self.captures += 1
        with _Tape() as tape:
            step()

        def replay() -> None:
            self.replays += 1
            tape.replay()

        return replay


class ReplayingDevice(PlainDevice):
    """Plain torch ops on the processor; decode steps are captured up to `max_captured_rows`."""

    runtime: ReplayingRuntime

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), kv_bytes=1 << 26)
        self.capabilities = type(self.capabilities)(
            device_name="replaying processor",
            dtypes=("float32",),
            kv_dtypes=("float32",),
            page_sizes=(16,),
            graphs=True,
        )
        self.runtime = ReplayingRuntime()
