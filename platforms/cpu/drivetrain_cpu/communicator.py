"""Collectives over gloo between processes."""

# Relaxed: torch's stubs leave out the process group.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportAttributeAccessIssue=false, reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import torch

from drivetrain_plugins.contract.communicator import Communicator
from drivetrain_plugins.errors import CommunicatorError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import AllToAllOptions, Store

    from drivetrain_plugins.contract.backend import RankInfo

_T = TypeVar("_T")


class _Work(Protocol):
    """A collective under way."""

    def wait(self) -> bool: ...


class _Group(Protocol):
    """What is used of a process group; torch's stubs leave these methods out of its gloo class."""

    def allreduce(self, tensors: list[torch.Tensor]) -> _Work: ...
    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor]) -> _Work: ...
    def alltoall_base(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        output_sizes: list[int],
        input_sizes: list[int],
        options: AllToAllOptions,
    ) -> _Work: ...
    def broadcast(self, tensor: torch.Tensor, root: int) -> _Work: ...
    def send(self, tensors: list[torch.Tensor], destination: int, tag: int) -> _Work: ...
    def recv(self, tensors: list[torch.Tensor], source: int, tag: int) -> _Work: ...
    def barrier(self) -> _Work: ...


class _Rendezvous(Protocol):
    """`torch.distributed.rendezvous`, whose keyword arguments have no types."""

    def __call__(
        self, url: str, rank: int, world_size: int, *, timeout: timedelta
    ) -> Iterator[tuple[Store, int, int]]: ...


class GlooCommunicator(Communicator):
    """A process group of its own; every call waits until it is done or its time is up."""

    def __init__(self, info: RankInfo) -> None:
        import torch.distributed as dist
        from torch._C._distributed_c10d import PrefixStore

        self.rank = info.rank
        self.world = info.world
        self._timeout_s = info.timeout_s
        self._dist = dist
        limit = timedelta(seconds=info.timeout_s)

        # Documented, but torch neither exports it for type checkers nor gives its keywords types.
        meet = cast("_Rendezvous", dist.rendezvous)  # pyright: ignore[reportPrivateImportUsage, reportUnknownMemberType]

        def join() -> _Group:
            store, _, _ = next(meet(info.init_method, info.rank, info.world, timeout=limit))
            store.set_timeout(limit)
            group = dist.ProcessGroupGloo(PrefixStore("drivetrain", store), info.rank, info.world, limit)
            return cast("_Group", group)

        self._group = self._guard(f"joining {info.init_method}", join)

    def all_reduce(self, inout: torch.Tensor) -> torch.Tensor:
        whole = inout.contiguous()
        self._guard("all_reduce", lambda: self._group.allreduce([whole]).wait())
        return inout if whole is inout else inout.copy_(whole)

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.world)]
        self._guard("all_gather", lambda: self._group.allgather([parts], [x]).wait())
        return torch.cat(parts, dim=dim)

    def reduce_scatter(self, x: torch.Tensor, dim: int = 0) -> torch.Tensor:
        if x.shape[dim] % self.world:
            raise ValueError(f"reduce_scatter of {x.shape[dim]} elements among {self.world} ranks: not divisible")
        # gloo has no reduce_scatter; half of what this sends is thrown away.
        total = self.all_reduce(x.clone(memory_format=torch.contiguous_format))
        return total.chunk(self.world, dim=dim)[self.rank].contiguous()

    def all_to_all(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if len(parts) != self.world:
            raise ValueError(f"all_to_all needs {self.world} parts, one a rank; got {len(parts)}")
        outgoing = [part.contiguous() for part in parts]
        shapes = self._exchange_shapes(outgoing)
        flat = torch.cat([part.reshape(-1) for part in outgoing])
        incoming = [torch.empty(shape, dtype=flat.dtype) for shape in shapes]
        received = torch.empty(sum(part.numel() for part in incoming), dtype=flat.dtype)
        options = self._dist.AllToAllOptions()
        sizes_in, sizes_out = [part.numel() for part in incoming], [part.numel() for part in outgoing]
        self._guard(
            "all_to_all",
            lambda: self._group.alltoall_base(received, flat, sizes_in, sizes_out, options).wait(),
        )
        end = 0
        for part in incoming:
            start, end = end, end + part.numel()
            part.copy_(received[start:end].view(part.shape))
        return incoming

    def broadcast(self, inout: torch.Tensor, source: int) -> torch.Tensor:
        whole = inout.contiguous()
        self._guard(f"broadcast from rank {source}", lambda: self._group.broadcast(whole, source).wait())
        return inout if whole is inout else inout.copy_(whole)

    def send(self, x: torch.Tensor, destination: int) -> None:
        x = x.contiguous()
        self._guard(f"send to rank {destination}", lambda: self._group.send([x], destination, 0).wait())

    def recv(self, out: torch.Tensor, source: int) -> torch.Tensor:
        whole = out.contiguous()
        self._guard(f"recv from rank {source}", lambda: self._group.recv([whole], source, 0).wait())
        return out if whole is out else out.copy_(whole)

    def barrier(self) -> None:
        self._guard("barrier", lambda: self._group.barrier().wait())

    def close(self) -> None:
        del self._group

    def _exchange_shapes(self, outgoing: Sequence[torch.Tensor]) -> list[list[int]]:
        """Shapes of the parts that the other ranks have for this one; parts have at most 8 dimensions."""
        table = torch.zeros(self.world, 9, dtype=torch.int64)
        for row, part in zip(table, outgoing, strict=True):
            row[0] = part.ndim
            row[1 : 1 + part.ndim] = torch.tensor(part.shape)
        everyone = self.all_gather(table, dim=0).view(self.world, self.world, 9)
        return [[int(size) for size in row[1 : 1 + int(row[0])]] for row in everyone[:, self.rank]]

    def _guard(self, operation: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except RuntimeError as error:
            raise CommunicatorError(
                f"{operation} failed on rank {self.rank} of {self.world} (time limit {self._timeout_s:g} s): {error}; "
                "look for the rank that ended first"
            ) from error
