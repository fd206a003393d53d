"""Collectives between the ranks of one model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch


class Communicator(ABC):
    """Collectives over a fixed group of ranks. In place where the name of the first argument says so.

    Every call runs in order with the steps and has a time limit; a rank that fails or hangs makes the others raise.

    Raises:
        CommunicatorError: names operation, rank and time limit.
    """

    rank: int
    world: int

    @abstractmethod
    def all_reduce(self, inout: torch.Tensor) -> torch.Tensor:
        """Sum over ranks, in place; returns its argument."""

    @abstractmethod
    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        """Concatenate every rank's `x` along `dim`."""

    @abstractmethod
    def reduce_scatter(self, x: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """Sum over ranks and keep this rank's equal share of `dim`."""

    @abstractmethod
    def all_to_all(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Send part i to rank i; returns the parts received, by rank. Shapes may differ."""

    @abstractmethod
    def broadcast(self, inout: torch.Tensor, source: int) -> torch.Tensor:
        """Overwrite with the tensor of rank `source`."""

    @abstractmethod
    def send(self, x: torch.Tensor, destination: int) -> None:
        """Send to one rank."""

    @abstractmethod
    def recv(self, out: torch.Tensor, source: int) -> torch.Tensor:
        """Receive from one rank into `out`."""

    @abstractmethod
    def barrier(self) -> None:
        """Wait for every rank."""

    @abstractmethod
    def close(self) -> None:
        """Leave the group."""


class SoleRank(Communicator):
    """The group of one rank: every collective is the identity."""

    rank = 0
    world = 1

    def all_reduce(self, inout: torch.Tensor) -> torch.Tensor:
        return inout

    def all_gather(self, x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return x

    def reduce_scatter(self, x: torch.Tensor, dim: int = 0) -> torch.Tensor:
        return x

    def all_to_all(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return list(parts)

    def broadcast(self, inout: torch.Tensor, source: int) -> torch.Tensor:
        return inout

    def send(self, x: torch.Tensor, destination: int) -> None:
        raise ValueError(f"a group of one rank cannot send to rank {destination}")

    def recv(self, out: torch.Tensor, source: int) -> torch.Tensor:
        raise ValueError(f"a group of one rank cannot receive from rank {source}")

    def barrier(self) -> None:
        return None

    def close(self) -> None:
        return None
