"""The checks of recorded steps and shared prefixes pass a device that has them, and catch one that has them wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from drivetrain_plugins.conformance.run import run_conformance
from drivetrain_plugins.contract.backend import Backend, RankInfo
from drivetrain_plugins.contract.batch import StepBatch
from drivetrain_plugins.contract.memory import KVCache
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import StepInputs
from fakes.replaying_device import BlindAttention, ReplayingDevice

CHECKS = (
    "attention.shared_prefixes_are_read_through_their_groups",
    "attention.blind_plans_fit_every_mixed_batch_of_their_shape",
    "attention.blind_plans_fit_every_batch_of_their_shape",
    "memory.pages_go_and_come_again",
)


class Recording(Backend):
    """The replaying device as a backend."""

    name = "recording"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> ReplayingDevice:
        return ReplayingDevice(captured_tokens=64, shared_groups=4)


@pytest.mark.parametrize("check", CHECKS)
def test_recorded_steps_and_shared_prefixes_conform(check: str) -> None:
    report = run_conformance(Recording, only=check)
    assert [result.outcome for result in report.results] == ["passed"], report.results


class LongGroups(BlindAttention):
    """Takes every group for a page longer than it is."""

    def plan(self, inputs: StepInputs, shape: StepShape, batch: StepBatch | None, cache: KVCache) -> Any:
        if inputs.shared_groups_G3 is not None:
            longer = inputs.shared_groups_G3.clone()
            longer[:, 2] += cache.spec.page_size
            inputs = replace(inputs, shared_groups_G3=longer)
        return super().plan(inputs, shape, batch, cache)


class FirstBatch(BlindAttention):
    """Plans a shape once, by what was on the device then."""

    def plan(self, inputs: StepInputs, shape: StepShape, batch: StepBatch | None, cache: KVCache) -> Any:
        if batch is None and not shape.decode_only:
            inputs = replace(inputs, token_row_T=inputs.token_row_T.new_tensor(inputs.token_row_T.tolist()))
        return super().plan(inputs, shape, batch, cache)


@pytest.mark.parametrize(("attention", "check"), [(LongGroups, CHECKS[0]), (FirstBatch, CHECKS[1])])
def test_wrong_groups_and_plans_that_remember_are_caught(attention: type[BlindAttention], check: str) -> None:
    class Broken(Recording):
        def open(self, rank: RankInfo, options: Mapping[str, Any]) -> ReplayingDevice:
            device = super().open(rank, options)
            device.attention = attention()
            return device

    report = run_conformance(Broken, only=check)
    assert [result.outcome for result in report.results] == ["failed"], report.results
