"""Collectives over gloo between processes."""

# Relaxed: torch's stubs leave out the process group.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportAttributeAccessIssue=false, reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import torch

from drivetrain_plugins.contract.communicator import Communicator
from drivetrain_plugins.errors import CommunicatorError

if TYPE_CHECKING:
    from drivetrain_plugins.contract.backend import RankInfo

_T = TypeVar("_T")


class GlooCommunicator(Communicator):
    """A process group of its own; every call waits until it is done or its time is up."""

    def __init__(self, info: RankInfo) -> None:
        import torch.distributed as dist

        self.rank = info.rank
        self.world = info.world
        self._timeout_s = info.timeout_s
        self._dist = dist
        limit = timedelta(seconds=info.timeout_s)

        def join() -> dist.ProcessGroupGloo:
            rendezvous = dist.rendezvous(info.init_method, rank=info.rank, world_size=info.world, timeout=limit)
            store, _, _ = next(iter(rendezvous))
            store.set_timeout(limit)
            return dist.ProcessGroupGloo(dist.PrefixStore("drivetrain", store), info.rank, info.world, limit)

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
        for part, content in zip(incoming, received.split(sizes_in), strict=True):
            part.copy_(content.view(part.shape))
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
        mine = everyone[:, self.rank].tolist()
        return [row[1 : 1 + row[0]] for row in mine]

    def _guard(self, operation: str, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except RuntimeError as error:
            raise CommunicatorError(
                f"{operation} failed on rank {self.rank} of {self.world} (time limit {self._timeout_s:g} s): {error}; "
                "look for the rank that ended first"
            ) from error
