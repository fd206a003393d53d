"""Collectives over HCCL between processes, as ops that a recorded step can hold.

They are torch's functional collectives: the group is named by a string, so that a graph with them compiles like any
other. Nothing here asks for HCCL by itself: what `torch.distributed` has registered under the name does the work.
"""

# Relaxed: torch's stubs leave out the process group and its ops.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from drivetrain_plugins.contract.communicator import Communicator
from drivetrain_plugins.errors import CommunicatorError

if TYPE_CHECKING:
    from drivetrain_plugins.contract.backend import RankInfo

_MOST_DIMENSIONS = 8
_T = TypeVar("_T")


class HcclCommunicator(Communicator):
    """The process's default group.

    Args:
        backend: torch's name of what carries the messages.
        device: of the tensors.
    """

    def __init__(self, info: RankInfo, device: torch.device, backend: str) -> None:
        import torch.distributed as dist

        self.rank = info.rank
        self.world = info.world
        self.limit_s = info.timeout_s
        self._device = device
        self._dist: Any = dist
        # Another vendor registers the same name for its own devices.
        named = f"{device.type}:{backend}"

        def join() -> None:
            dist.init_process_group(
                backend=named,
                init_method=info.init_method,
                rank=info.rank,
                world_size=info.world,
                timeout=timedelta(seconds=info.timeout_s),
            )

        self._guard(f"joining {info.init_method}", join)
        self._group: Any = dist.group.WORLD
        self._name: str = self._group.group_name
        self._ops: Any = torch.ops._c10d_functional

    def all_reduce(self, inout: torch.Tensor) -> torch.Tensor:
        total = self._guard(
            "all_reduce", lambda: self._wait(self._ops.all_reduce(inout.contiguous(), "sum", self._name))
        )
        return inout.copy_(total)

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        x = x.contiguous()
        gathered = self._guard(
            "all_gather",
            lambda: self._wait(self._ops.all_gather_into_tensor(x.view(1, *x.shape), self.world, self._name)),
        )
        return torch.cat(gathered.unbind(), dim=dim)

    def reduce_scatter(self, x: torch.Tensor, dim: int = 0) -> torch.Tensor:
        if x.shape[dim] % self.world:
            raise ValueError(f"reduce_scatter of {x.shape[dim]} elements among {self.world} ranks: not divisible")
        parts = torch.stack(x.chunk(self.world, dim=dim))
        return self._guard(
            "reduce_scatter",
            lambda: self._wait(self._ops.reduce_scatter_tensor(parts, "sum", self.world, self._name))[0],
        )

    def all_to_all(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if len(parts) != self.world:
            raise ValueError(f"all_to_all needs {self.world} parts, one a rank; got {len(parts)}")
        shapes = self._exchange_shapes(parts)
        flat = torch.cat([part.reshape(-1) for part in parts])
        sizes_out = [part.numel() for part in parts]
        sizes_in = [torch.Size(shape).numel() for shape in shapes]
        received = self._guard(
            "all_to_all", lambda: self._wait(self._ops.all_to_all_single(flat, sizes_in, sizes_out, self._name))
        )
        return [part.view(shape) for part, shape in zip(received.split(sizes_in), shapes, strict=True)]

    def broadcast(self, inout: torch.Tensor, source: int) -> torch.Tensor:
        sent = self._guard(
            f"broadcast from rank {source}",
            lambda: self._wait(self._ops.broadcast(inout.contiguous(), source, self._name)),
        )
        return inout.copy_(sent)

    def send(self, x: torch.Tensor, destination: int) -> None:
        self._guard(f"send to rank {destination}", lambda: self._dist.send(x.contiguous(), destination))

    def recv(self, out: torch.Tensor, source: int) -> torch.Tensor:
        whole = out.contiguous()
        self._guard(f"recv from rank {source}", lambda: self._dist.recv(whole, source))
        return out if whole is out else out.copy_(whole)

    def barrier(self) -> None:
        # Brought to the host, so that it is over when this returns.
        self.all_reduce(torch.zeros(1, device=self._device)).cpu()

    def close(self) -> None:
        if self._dist.is_initialized():
            self._dist.destroy_process_group()

    def _wait(self, pending: torch.Tensor) -> torch.Tensor:
        return self._ops.wait_tensor(pending)

    def _exchange_shapes(self, outgoing: Sequence[torch.Tensor]) -> list[list[int]]:
        """Shapes of the parts that the other ranks have for this one."""
        table = torch.zeros(self.world, 1 + _MOST_DIMENSIONS, dtype=torch.int32)
        for row, part in zip(table, outgoing, strict=True):
            row[0] = part.ndim
            row[1 : 1 + part.ndim] = torch.tensor(part.shape)
        everyone = self.all_gather(table.to(self._device), dim=0).view(self.world, self.world, 1 + _MOST_DIMENSIONS)
        return [[int(size) for size in row[1 : 1 + int(row[0])]] for row in everyone[:, self.rank].cpu()]

    def _guard(self, operation: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except RuntimeError as error:
            raise CommunicatorError(
                f"{operation} failed on rank {self.rank} of {self.world} (time limit {self.limit_s:g} s): {error}; "
                "look for the rank that ended first"
            ) from error
