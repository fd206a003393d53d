"""The CUDA runtime where it needs no GPU: cutting uploads, waiting under limits, telling errors apart."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from drivetrain_cuda.backend import CudaBackend
from drivetrain_cuda.faults import CUDA_FAULTS
from drivetrain_cuda.options import CudaOptions
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.memory import MemoryLimits
from drivetrain_plugins.errors import BackendError, CommunicatorError, DeviceLost, OutOfMemory
from drivetrain_triton.device.communicator import NcclCommunicator
from drivetrain_triton.device.faults import classify
from drivetrain_triton.device.runtime import Waiter
from drivetrain_triton.device.shapes import row_buckets, shape_policy
from drivetrain_triton.device.upload import pieces
from drivetrain_triton.device.virtual_memory import DriverError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("shape", "narrowed"), [((1000,), False), ((7, 300), False), ((), False), ((0, 4), False), ((64, 40), True)]
)
def test_uploads_are_cut_alike_into_blocks(shape: tuple[int, ...], narrowed: bool) -> None:
    host = torch.randn(shape)
    host = host[:, 3:20] if narrowed else host
    destination = torch.full(host.shape, float("nan"), dtype=torch.bfloat16)
    parts = pieces(host, destination, 512)
    for host_part, part in parts:
        assert part.numel() * 2 <= 512
        part.copy_(host_part)
    assert torch.equal(destination, host.bfloat16())
    assert len(parts) == -(-host.numel() // 256) or narrowed


def test_rows_that_are_larger_than_a_block_stay_whole() -> None:
    host = torch.randn(4, 300)[:, :299]
    assert [tuple(part.shape) for _, part in pieces(host, torch.empty(4, 299), 512)] == [(1, 299)] * 4


class Event:
    """Happens after so many questions, or never."""

    def __init__(self, questions: int | None) -> None:
        self.questions = questions
        self.slept = False

    def query(self) -> bool:
        if self.questions is None:
            return False
        self.questions -= 1
        return self.questions < 0

    def synchronize(self) -> None:
        self.slept = True


@dataclass(frozen=True)
class Limit:
    limit_s: float

    def overdue(self) -> Exception:
        return CommunicatorError("all_reduce did not finish")


def waited(event: Any, **arguments: Any) -> float:
    begin = time.perf_counter()
    Waiter(CPU, CUDA_FAULTS, arguments.get("spin_s", 0.0), arguments.get("watch"))(event)
    return time.perf_counter() - begin


def test_a_wait_spins_briefly_and_then_sleeps_on_the_event() -> None:
    soon, late = Event(3), Event(None)
    waited(soon, spin_s=10.0)
    assert not soon.slept
    assert waited(late, spin_s=0.01) >= 0.01
    assert late.slept


def test_with_other_ranks_a_wait_has_a_limit_and_never_sleeps_past_it() -> None:
    waited(Event(3), watch=Limit(limit_s=60.0))
    stuck = Event(None)
    with pytest.raises(CommunicatorError, match="all_reduce did not finish"):
        waited(stuck, watch=Limit(limit_s=0.05))
    assert not stuck.slept


def test_an_error_of_the_device_reaches_who_waits_in_its_meaning() -> None:
    class Failing(Event):
        def query(self) -> bool:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    class Broken(Event):
        def query(self) -> bool:
            raise RuntimeError("a bug of ours")

    with pytest.raises(OutOfMemory, match="cpu ran out of memory: CUDA out of memory"):
        waited(Failing(None))
    with pytest.raises(RuntimeError, match="a bug of ours"):
        waited(Broken(None))


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OutOfMemory),
        (DriverError("cuMemCreate", "CUDA_ERROR_OUT_OF_MEMORY"), OutOfMemory),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), OutOfMemory),
        (RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA"), OutOfMemory),
        (RuntimeError("CUDA error: invalid argument"), None),
        (RuntimeError("Triton Error [CUDA]: invalid argument"), None),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
        (ValueError("out of memory is in this text, but no device"), None),
        (CommunicatorError("all_reduce failed"), CommunicatorError),
    ],
    ids=str,
)
def test_errors_are_told_apart(error: Exception, meaning: type[Exception] | None) -> None:
    found = classify(error, CPU, CUDA_FAULTS)
    assert type(found) is (type(None) if meaning is None else meaning)


def test_an_error_after_which_nothing_works_is_a_lost_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    found = classify(
        RuntimeError("Triton Error [CUDA]: unspecified launch failure"), torch.device("cuda", 0), CUDA_FAULTS
    )
    assert isinstance(found, DeviceLost)
    assert str(found).startswith(
        "cuda:0 no longer answers (CUDA error: an illegal memory access was encountered); first seen as: Triton Error"
    )


def limits(rows: int, tokens: int = 8192) -> ExecutorLimits:
    return ExecutorLimits(
        dtype="bfloat16",
        kv_dtype="bfloat16",
        max_num_rows=rows,
        max_step_tokens=tokens,
        max_model_len=1024,
        page_size=64,
        memory=MemoryLimits(),
    )


@pytest.mark.parametrize("rows", [1, 3, 16, 100, 256, 257, 300, 512, 1000])
def test_every_number_of_rows_has_a_recorded_shape_of_little_padding(rows: int) -> None:
    policy = shape_policy(limits(rows), graphs=True)
    assert list(policy.row_buckets) == sorted(set(policy.row_buckets))
    for number in range(1, rows + 1):
        shape = policy.pad(rows=number, tokens=number, pages=3, decode_only=True)
        assert shape.captured
        assert number <= shape.rows <= max(2 * number, number + 8)
    mixed = policy.pad(rows=rows + 1, tokens=rows + 9, pages=3, decode_only=False)
    assert mixed.rows == rows + 1
    assert policy.pad(rows=2, tokens=8000, pages=3, decode_only=False).tokens == 8000


def test_without_graphs_nothing_is_recorded() -> None:
    policy = shape_policy(limits(64), graphs=False)
    assert not policy.pad(rows=3, tokens=3, pages=1, decode_only=True).captured
    assert not policy.pad(rows=3, tokens=30, pages=1, decode_only=False).captured


def test_small_step_budgets_bound_what_is_recorded() -> None:
    policy = shape_policy(limits(4, tokens=16), graphs=True)
    assert policy.token_buckets == ()
    assert policy.max_captured_tokens == 0
    assert row_buckets(4) == (1, 2, 4)


def test_options_have_defaults_and_refuse_unknown_keys() -> None:
    import msgspec

    assert msgspec.convert({}, CudaOptions) == CudaOptions(graphs=True, batch_invariant=False)
    with pytest.raises(msgspec.ValidationError, match="graph"):
        msgspec.convert({"graph": False}, CudaOptions)


@pytest.mark.parametrize(("options", "message"), [({"graph": False}, "graph"), ({"graphs": "no"}, "graphs")])
def test_a_bad_option_is_refused_by_name_before_anything_is_opened(options: dict[str, object], message: str) -> None:
    with pytest.raises(BackendError, match=rf"backend_options.cuda: .*{message}.*the keys are graphs, batch_invariant"):
        CudaBackend().open(RankInfo(), options)


def test_a_torch_without_nccl_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    monkeypatch.setattr(dist, "is_nccl_available", lambda: False)
    info = RankInfo(rank=1, world=2, init_method="tcp://127.0.0.1:1", timeout_s=3)
    with pytest.raises(CommunicatorError, match=r"joining tcp://127.0.0.1:1 failed on rank 1 of 2 .* has no NCCL"):
        NcclCommunicator(info, CPU)
