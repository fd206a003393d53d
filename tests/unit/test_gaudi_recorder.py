"""Steps become graphs that repeat them, compiled as Habana's backend compiles: mutations and all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from drivetrain_gaudi.habana import Compilation
from drivetrain_gaudi.ledger import ShapeLedger
from drivetrain_gaudi.recorder import record
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.errors import Unsupported
from gaudi_on_cpu import install_stub


@pytest.fixture(autouse=True)
def habana(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs pass through AOT autograd, as they do on a card."""
    install_stub()
    import habana_frameworks.torch  # noqa: F401
    from habana_frameworks.torch import hpu_state

    monkeypatch.setattr(hpu_state, "decomposes", True)
    yield
    torch.compiler.set_stance("default")
    torch.compiler.reset()


@torch.inference_mode()
def test_a_replay_reads_anew_and_writes_what_the_step_left_alive() -> None:
    weight, cache = torch.randn(8, 8), torch.zeros(16, 8)
    chosen = torch.tensor([0, 1, 2, 3], dtype=torch.int32)
    kept: dict[str, torch.Tensor] = {}

    def step() -> None:
        index = chosen.long()
        mixed = (weight[index] @ weight).softmax(dim=-1)
        cache.index_copy_(0, index, mixed)
        kept["sum"] = cache.sum(dim=0)
        kept["half"] = mixed.chunk(2, dim=-1)[1]
        kept["view"] = chosen.view(2, 2)

    replay = record(step, Compilation())
    recorded = dict(kept)
    replay()
    torch.compiler.set_stance("fail_on_recompile")
    for indices in ([5, 6, 7, 1], [3, 2, 0, 4]):
        chosen.copy_(torch.tensor(indices))
        cache.zero_()
        replay()
        expected = (weight[chosen.long()] @ weight).softmax(dim=-1)
        assert kept["sum"] is recorded["sum"], "no Python of the step runs again"
        torch.testing.assert_close(cache[chosen.long()], expected)
        torch.testing.assert_close(kept["sum"], expected.sum(dim=0))
        torch.testing.assert_close(kept["half"], expected[:, 4:])
        assert kept["view"].flatten().tolist() == indices


@torch.inference_mode()
def test_recordings_of_many_shapes_do_not_reach_any_limit_of_recompiling() -> None:
    buffers = [torch.arange(float(size)) for size in range(1, 20)]
    replays = []
    for buffer in buffers:

        def step(buffer: torch.Tensor = buffer) -> None:
            buffer.add_(1.0)

        replays.append(record(step, Compilation()))
    for replay in replays:
        replay()
    torch.compiler.set_stance("fail_on_recompile")
    for replay, buffer in zip(replays, buffers, strict=True):
        before = buffer.clone()
        replay()
        torch.testing.assert_close(buffer, before + 1.0)


@torch.inference_mode()
def test_a_step_that_needs_the_host_is_refused() -> None:
    x = torch.ones(3)

    def step() -> None:
        x.mul_(float(x.sum()))

    with pytest.raises(Unsupported, match="reads values of the device on the host"):
        record(step, Compilation())


@torch.inference_mode()
@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        ("hpu_backend", {"force_static": True}, "has no option"),
        ("hpu_backend", {}, "force_static_compile is expected"),
        ("hpu_backends", {"force_static_compile": True}, "Invalid backend"),
    ],
)
def test_wrong_names_and_options_fail(backend: str, options: dict[str, bool], message: str) -> None:
    x = torch.ones(3)

    def step() -> None:
        x.add_(1.0)

    with pytest.raises(Exception, match=message):
        record(step, Compilation(backend, options))()


HPU_CALLS: list[tuple[str, tuple[Any, ...]]] = [
    ("rms_norm", (torch.ones(2, 4), torch.ones(4))),
    ("rms_norm", (torch.ones(2, 4), torch.ones(4), "1e-5")),
    ("rms_normalize", (torch.ones(2, 4), torch.ones(4), 1e-5)),
    ("cast_from_fp8", (torch.ones(2).to(torch.float8_e4m3fn), 1, torch.float32)),
    ("cast_to_fp8_v2", (torch.ones(2), None, False, False, "float8")),
    ("sdpa_recomp_fwd", (torch.ones(1, 1, 2, 4),) * 3),
]


@pytest.mark.parametrize(("name", "arguments"), HPU_CALLS)
def test_the_stub_of_habana_s_ops_accepts_nothing_that_its_schemas_do_not(
    name: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises((RuntimeError, AttributeError)):
        getattr(torch.ops.hpu, name)(*arguments)


@pytest.mark.parametrize(("device_type", "largest"), [("synDeviceGaudi2", 240.0), ("synDeviceGaudi3", 448.0)])
def test_fp8_saturates_where_the_generation_ends(
    device_type: str, largest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from habana_frameworks.torch import hpu_state, ops

    from drivetrain_gaudi.habana import from_fp8, load_habana, to_fp8

    monkeypatch.setattr(hpu_state, "device_type", device_type)
    monkeypatch.setattr(ops, "fp8_range", largest)
    habana = load_habana("cpu")
    assert habana.generation.fp8_max == largest
    x = torch.tensor([1.0, -largest, 1e4, -1e4, 0.3])
    got = from_fp8(to_fp8(x, largest), torch.float32)
    assert got.tolist() == [1.0, -largest, largest, -largest, 0.3125]


def test_the_first_generation_claims_no_fp8(monkeypatch: pytest.MonkeyPatch) -> None:
    from habana_frameworks.torch import hpu_state

    from drivetrain_plugins.contract.backend import RankInfo
    from gaudi_on_cpu import GaudiOnCpu

    monkeypatch.setattr(hpu_state, "device_type", "synDeviceGaudi")
    found = GaudiOnCpu().open(RankInfo(), {"recipe_cache": "off"}).capabilities
    assert (found.fp8, found.kv_dtypes) == ("none", ("bfloat16", "float32"))


def test_shapes_are_late_only_once_core_has_prepared_its_own() -> None:
    shape = StepShape(rows=2, tokens=2, pages=4, decode_only=True, total_pages=8)
    ledger = ShapeLedger("warn")
    ledger.planned(shape)
    ledger.preparing(True)
    ledger.planned(shape)
    assert ledger.late_steps == 0
    ledger.preparing(False)
    ledger.planned(shape)
    ledger.planned(shape)
    assert (ledger.late_steps, ledger.late_shapes) == (2, {shape})
    ledger.preparing(True)
    ledger.planned(shape)
    assert ledger.late_steps == 2, "prepared while nobody waits"
    strict = ShapeLedger("refuse")
    strict.preparing(False)
    with pytest.raises(Unsupported, match="a step of 2 rows, 2 tokens and 8 pages was not prepared"):
        strict.planned(shape)


def test_a_card_that_never_finishes_is_given_up_after_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from habana_frameworks.torch import hpu_state

    from drivetrain_gaudi.habana import load_habana
    from drivetrain_gaudi.runtime import GaudiRuntime
    from drivetrain_plugins.errors import CommunicatorError

    runtime = GaudiRuntime(load_habana("cpu"), ShapeLedger("warn"), limit_s=0.01)
    fetch = runtime.fetch({"x": torch.ones(2)})
    assert fetch.wait()["x"].tolist() == [1.0, 1.0]
    monkeypatch.setattr(hpu_state, "hangs", True)
    fetch = runtime.fetch({"x": torch.ones(2)})
    assert not fetch.ready()
    with pytest.raises(CommunicatorError, match=r"within the time limit of 0\.01 s"):
        fetch.wait()
