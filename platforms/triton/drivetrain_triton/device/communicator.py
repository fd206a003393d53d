"""Collectives over NCCL between processes, in order with the steps and recordable in graphs.

A collective returns once it is on its way. NCCL's kernels wait on the device for the other ranks, so that a lost rank
shows where the host waits for results: there the time limit is kept (`overdue`), and the waiting kernels are ended.
torch's own watchdog is kept out of it by the environment that `plugin.py` declares.
"""

# Relaxed: torch's stubs leave out the process group, and a build without NCCL has none.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportAttributeAccessIssue=false, reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import torch

from drivetrain_plugins.contract.communicator import Communicator
from drivetrain_plugins.errors import CommunicatorError

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

    from drivetrain_plugins.contract.backend import RankInfo

_MOST_DIMENSIONS = 8
_T = TypeVar("_T")


class _Rendezvous(Protocol):
    """`torch.distributed.rendezvous`, whose keyword arguments have no types."""

    def __call__(
        self, url: str, rank: int, world_size: int, *, timeout: timedelta
    ) -> Iterator[tuple[Store, int, int]]: ...


class NcclCommunicator(Communicator):
    """Two NCCL groups over the same ranks: one for eager calls, one for those that a graph records.

    NCCL orders the calls of one group on the host; a group that only graphs use needs no ordering against eager ones.
    """

    def __init__(self, info: RankInfo, device: torch.device) -> None:
        self.rank = info.rank
        self.world = info.world
        self.limit_s = info.timeout_s
        self._device = device
        self._last = "nothing yet"
        store = self._guard(f"joining {info.init_method}", lambda: self._meet(info))
        self._eager = self._group("eager", store)
        self._recorded = self._group("recorded", store)
        # The first call connects the ranks, which a recording cannot.
        for group in (self._eager, self._recorded):
            self._guard("the first all_reduce", lambda group=group: self._reduce(group, torch.zeros(1, device=device)))

    def all_reduce(self, inout: torch.Tensor) -> torch.Tensor:
        whole = inout.contiguous()
        self._guard("all_reduce", lambda: self._reduce(self._current, whole))
        return inout if whole is inout else inout.copy_(whole)

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        x = x.contiguous()
        parts = torch.empty(self.world, *x.shape, dtype=x.dtype, device=x.device)
        self._guard("all_gather", lambda: self._current._allgather_base(parts.view(-1), x.view(-1)).wait())
        return parts.flatten(0, 1) if dim == 0 and x.ndim else torch.cat(parts.unbind(), dim=dim)

    def reduce_scatter(self, x: torch.Tensor, dim: int = 0) -> torch.Tensor:
        if x.shape[dim] % self.world:
            raise ValueError(f"reduce_scatter of {x.shape[dim]} elements among {self.world} ranks: not divisible")
        parts = torch.stack(x.chunk(self.world, dim=dim))
        out = torch.empty_like(parts[0], memory_format=torch.contiguous_format)
        self._guard("reduce_scatter", lambda: self._current._reduce_scatter_base(out.view(-1), parts.view(-1)).wait())
        return out

    def all_to_all(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        if len(parts) != self.world:
            raise ValueError(f"all_to_all needs {self.world} parts, one a rank; got {len(parts)}")
        if torch.cuda.is_current_stream_capturing():
            raise ValueError("all_to_all learns the shapes of its parts on the host and cannot be recorded in a graph")
        shapes = self._exchange_shapes(parts)
        flat = torch.cat([part.reshape(-1) for part in parts])
        incoming = [torch.empty(shape, dtype=flat.dtype, device=flat.device) for shape in shapes]
        sizes_in, sizes_out = [part.numel() for part in incoming], [part.numel() for part in parts]
        received = torch.empty(sum(sizes_in), dtype=flat.dtype, device=flat.device)
        self._guard("all_to_all", lambda: self._current.alltoall_base(received, flat, sizes_in, sizes_out).wait())
        return [part.view(shape) for part, shape in zip(received.split(sizes_in), shapes, strict=True)]

    def broadcast(self, inout: torch.Tensor, source: int) -> torch.Tensor:
        whole = inout.contiguous()
        self._guard(f"broadcast from rank {source}", lambda: self._current.broadcast(whole, source).wait())
        return inout if whole is inout else inout.copy_(whole)

    def send(self, x: torch.Tensor, destination: int) -> None:
        self._guard(f"send to rank {destination}", lambda: self._current.send([x.contiguous()], destination, 0).wait())

    def recv(self, out: torch.Tensor, source: int) -> torch.Tensor:
        whole = out.contiguous()
        self._guard(f"recv from rank {source}", lambda: self._current.recv([whole], source, 0).wait())
        return out if whole is out else out.copy_(whole)

    def barrier(self) -> None:
        self._guard("barrier", lambda: self._reduce(self._current, torch.zeros(1, device=self._device)))

    def overdue(self) -> CommunicatorError:
        """End the waiting kernels and say what did not finish; called by who waited `limit_s` for the device."""
        for group in (self._eager, self._recorded):
            with contextlib.suppress(RuntimeError):
                group.abort()
        return CommunicatorError(
            f"{self._last} did not finish on rank {self.rank} of {self.world} within the time limit of "
            f"{self.limit_s:g} s; look for the rank that ended or stopped first"
        )

    def close(self) -> None:
        for group in (self._eager, self._recorded):
            with contextlib.suppress(RuntimeError):
                group.shutdown()

    @property
    def _current(self) -> Any:
        return self._recorded if torch.cuda.is_current_stream_capturing() else self._eager

    def _reduce(self, group: Any, whole: torch.Tensor) -> None:
        group.allreduce([whole]).wait()

    def _group(self, name: str, store: Store) -> Any:
        import torch.distributed as dist
        from torch._C._distributed_c10d import PrefixStore

        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timedelta(seconds=self.limit_s)
        return dist.ProcessGroupNCCL(PrefixStore(f"drivetrain-{name}", store), self.rank, self.world, options)

    def _meet(self, info: RankInfo) -> Store:
        """The store that all ranks share, once all of them are there."""
        import torch.distributed as dist

        if not dist.is_nccl_available():
            raise RuntimeError("this build of torch has no NCCL")
        limit = timedelta(seconds=info.timeout_s)
        # Documented, but torch neither exports it for type checkers nor gives its keywords types.
        meet = cast("_Rendezvous", dist.rendezvous)
        store, _, _ = next(meet(info.init_method, info.rank, info.world, timeout=limit))
        store.set_timeout(limit)
        store.set(f"drivetrain-here-{info.rank}", "yes")
        store.wait([f"drivetrain-here-{rank}" for rank in range(info.world)], limit)
        return store

    def _exchange_shapes(self, outgoing: Sequence[torch.Tensor]) -> list[list[int]]:
        """Shapes of the parts that the other ranks have for this one."""
        table = torch.zeros(self.world, 1 + _MOST_DIMENSIONS, dtype=torch.int64)
        for row, part in zip(table, outgoing, strict=True):
            row[0] = part.ndim
            row[1 : 1 + part.ndim] = torch.tensor(part.shape)
        everyone = self.all_gather(table.to(self._device), dim=0).view(self.world, self.world, 1 + _MOST_DIMENSIONS)
        return [[int(size) for size in row[1 : 1 + int(row[0])]] for row in everyone[:, self.rank].cpu()]

    def _guard(self, operation: str, call: Callable[[], _T]) -> _T:
        self._last = operation
        try:
            return call()
        except RuntimeError as error:
            raise CommunicatorError(
                f"{operation} failed on rank {self.rank} of {self.world} (time limit {self.limit_s:g} s): {error}; "
                "look for the rank that ended first"
            ) from error
