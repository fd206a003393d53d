"""What runs steps. Core's own drives a backend's ops; a vendor whose device runs no torch modules brings another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from drivetrain_plugins.contract.batch import StepBatch, StepOutput, Ticket
from drivetrain_plugins.contract.capabilities import Dtype, KVDtype
from drivetrain_plugins.contract.memory import MemoryLimits, MemoryPlan
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_plugins.contract.runtime import Fetch
from drivetrain_plugins.contract.shapes import ShapePolicy
from drivetrain_plugins.errors import Unsupported

Progress = Callable[[str, float, float, str], None]
"""(phase, done, total, unit): called while loading, so that people see what goes on."""


class Weights(ABC):
    """A checkpoint under the canonical names of `contract.model`."""

    @abstractmethod
    def load(self, name: str) -> torch.Tensor:
        """The whole weight in the checkpoint's type: on the host, or on the device if it is made there.

        Raises:
            DrivetrainError: missing, corrupt, or of the wrong shape; names file, tensor and shapes.
        """

    @property
    @abstractmethod
    def total_bytes(self) -> int:
        """Bytes that loading everything reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorLimits:
    """Sizes that an executor is built for.

    Attributes:
        max_num_rows: requests that run at once; the number of slots.
        max_step_tokens: tokens of one step.
        max_model_len: longest sequence, answer included.
        page_size: tokens a page.
    """

    dtype: Dtype
    kv_dtype: KVDtype
    max_num_rows: int
    max_step_tokens: int
    max_model_len: int
    page_size: int
    memory: MemoryLimits

    @property
    def max_pages(self) -> int:
        """Columns of the page table."""
        return -(-self.max_model_len // self.page_size)


class Executor(ABC):
    """Runs the steps of one model on one rank.

    Attributes:
        pools: whether it serves `StepBatch.pooling`, which embeddings need.
    """

    pools: ClassVar[bool] = False

    @property
    @abstractmethod
    def shape_policy(self) -> ShapePolicy:
        """How the steps that it is given must be shaped."""

    @abstractmethod
    def load(self, spec: DecoderSpec, weights: Weights, limits: ExecutorLimits, progress: Progress) -> MemoryPlan:
        """Load weights, warm up, and say how many pages there are. Called once, first.

        Raises:
            OutOfMemory: the model or the fewest pages do not fit.
        """

    @abstractmethod
    def execute(self, batch: StepBatch) -> Ticket:
        """Start a step. Steps run in the order of the calls; at most two are under way at once."""

    def prepare_more(self) -> bool:
        """Do a little that makes later steps faster, a second of work at most. Called while no step is under way.

        Returns:
            Whether there is more to do.
        """
        return False

    def set_pages(self, num_pages: int) -> None:
        """Keep so many pages, the null page included, up to as many as `load` planned; at least 2.

        Called while no step is under way. Pages that go lose their content.

        Raises:
            Unsupported: the number is fixed.
            OutOfMemory: they do not fit any more.
        """
        raise Unsupported(f"this executor's number of pages is fixed, and {num_pages} were asked for")

    @abstractmethod
    def close(self) -> None:
        """Free the device."""


_NOT_BY_SAMPLE = ("prompt_", "pooled")
"""Results whose rows are not those that sampled."""


class FetchedStep:
    """The ticket of a step whose results are fetched by a `Runtime`, under the names of `StepOutput`.

    Args:
        fetch: the arrays on their way.
        num_samples: rows that sampled; what the padding sampled is cut off.
    """

    def __init__(self, fetch: Fetch, num_samples: int) -> None:
        self._fetch = fetch
        self._num_samples = num_samples

    def ready(self) -> bool:
        """Whether `wait` would return at once."""
        return self._fetch.ready()

    def wait(self) -> StepOutput:
        """Block until the results are on the host; raises what `Fetch.wait` raises."""
        count = self._num_samples
        return StepOutput(
            **{name: x if name.startswith(_NOT_BY_SAMPLE) else x[:count] for name, x in self._fetch.wait().items()}
        )
