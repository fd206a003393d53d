"""Opening an AMD GPU without one: what is refused, and when steps cannot be recorded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="needs the package triton, which has no build for this platform")

from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.errors import BackendError
from drivetrain_rocm.backend import RocmBackend
from drivetrain_rocm.device import OpenedGpu, capabilities, hip_version, lost_graphs
from drivetrain_rocm.parts import PARTS
from fakes.memory_driver import FakeMemoryDriver

GPU = OpenedGpu(
    ordinal=0,
    name="AMD Instinct MI300X",
    arch="gfx942",
    part=PARTS["gfx942"],
    num_processors=304,
    memory_bytes=192 << 30,
    memory=FakeMemoryDriver(),
    no_memory="",
    others=0,
    hip="7.1.25424-4179531dcd",
)


@pytest.mark.parametrize(("options", "message"), [({"graph": False}, "graph"), ({"graphs": "no"}, "graphs")])
def test_a_bad_option_is_refused_by_name_before_anything_is_opened(options: dict[str, object], message: str) -> None:
    with pytest.raises(BackendError, match=rf"backend_options.rocm: .*{message}.*the keys are graphs, batch_invariant"):
        RocmBackend().open(RankInfo(), options)


@pytest.mark.skipif(torch.version.hip is not None, reason="this PyTorch is built for ROCm")
def test_a_torch_for_something_else_is_refused() -> None:
    with pytest.raises(BackendError, match="is a build without ROCm; `drivetrain backends` names the command"):
        RocmBackend().open(RankInfo(), {})


def test_the_part_is_taken_from_the_architecture_and_nothing_else() -> None:
    assert RocmBackend().part("gfx942:sramecc+:xnack-") == ("gfx942", PARTS["gfx942"])
    assert RocmBackend().part("gfx1101") == ("gfx1101", PARTS["gfx1100"])
    with pytest.raises(BackendError, match="this GPU is a gfx1030; served are gfx90a, gfx942"):
        RocmBackend().part("gfx1030")


@pytest.mark.parametrize(
    ("text", "version"),
    [("7.1.25424-4179531dcd", (7, 1)), ("7.3.0", (7, 3)), ("6.4.43482", (6, 4)), ("unknown", (0, 0))],
)
def test_versions_of_hip(text: str, version: tuple[int, int]) -> None:
    assert hip_version(text) == version


def test_steps_are_recorded_where_nothing_forbids_it() -> None:
    assert lost_graphs(GPU, 1) == []
    assert lost_graphs(replace(GPU, hip="7.3.1"), 8) == []
    (ranks,) = lost_graphs(GPU, 2)
    assert ranks == "with several ranks HIP 7.1.25424-4179531dcd ends recordings; 7.3 or later does not"
    (moving,) = lost_graphs(replace(GPU, memory=None, no_memory="hipMemMap failed"), 1)
    assert "pages would move when they grow" in moving and "(hipMemMap failed)" in moving


def test_capabilities_follow_the_part() -> None:
    made = capabilities(GPU, graphs=True)
    assert (made.fp8, made.max_head_dim, made.graphs, made.page_sizes[0]) == ("fnuz", 256, True, 64)
    assert {"gfx942", "mfma", "wave64", "virtual memory"} == made.features
    small = capabilities(replace(GPU, arch="gfx1101", part=PARTS["gfx1100"], memory=None), graphs=False)
    assert (small.fp8, small.max_head_dim, small.graphs) == ("none", 128, False)
    assert {"gfx1101", "wmma", "wave32"} == small.features
