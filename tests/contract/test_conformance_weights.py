"""The checks of weight formats pass a backend that reads all of them, and fail one that reads one of them wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from contract.quantized_backends import FAULTS, EightBitInputs, Quantized
from drivetrain_plugins.conformance import weight_checks
from drivetrain_plugins.conformance.run import run_conformance
from drivetrain_plugins.contract import reference
from drivetrain_plugins.contract.ops import LinearWeight
from drivetrain_plugins.errors import Unsupported


@pytest.fixture(autouse=True)
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_checks, "_TOKENS", (1, 17))


def test_a_backend_that_reads_every_format_conforms() -> None:
    for only in ("weight.", "capability.claimed_formats"):
        report = run_conformance(Quantized, {"threads": 1}, only=only)
        assert [result.outcome for result in report.results] == ["passed"] * len(report.results), report.results
    level = next(level for level in report.levels if level.level == "quantized")
    assert level.claimed
    assert "int4" in level.claim


def test_inputs_may_be_rounded_to_eight_bits_where_the_weights_are() -> None:
    report = run_conformance(EightBitInputs, {"threads": 1}, only="weight.")
    assert report.passed, report.failed


@pytest.mark.parametrize("name", FAULTS)
def test_a_format_read_wrongly_is_found(name: str) -> None:
    caught_by, change = FAULTS[name]
    broken = type("Broken", (Quantized,), {"change": staticmethod(change)})
    report = run_conformance(broken, {"threads": 1}, only=caught_by)
    (result,) = report.results
    assert result.outcome == "failed"
    assert "expected at most" in result.reason


def test_a_claim_of_a_format_that_nobody_defines_is_broken() -> None:
    class Inventive(Quantized):
        def open(self, rank: Any, options: Any) -> Any:
            from dataclasses import replace

            device = super().open(rank, options)
            device.capabilities = replace(device.capabilities, quantizations=frozenset({"int3"}))
            return device

    (result,) = run_conformance(Inventive, {"threads": 1}, only="capability.claimed_formats").results
    assert result.outcome == "failed"
    assert "no format named ['int3']" in result.reason
    refused = run_conformance(Inventive, {"threads": 1}, only="weight.formats_that_are_not_claimed").results
    assert [each.outcome for each in refused] == ["failed"], "it takes fp8_e4m3 without saying so"


def test_what_the_formats_mean() -> None:
    """By hand: the numbers of the contract's own formulas."""
    int4 = LinearWeight(
        weight=torch.tensor([[0x31, 0xF0]], dtype=torch.uint8),
        quantization="int4",
        parts={"scale": torch.tensor([[2.0, 0.5]]), "zero": torch.tensor([[1, 16]], dtype=torch.uint8)},
    )
    assert reference.dequantize(int4).tolist() == [[0.0, 4.0, -8.0, -0.5]]
    blocks = LinearWeight(
        weight=torch.ones(129, 130).to(torch.float8_e4m3fn),
        quantization="fp8_e4m3",
        parts={"scale": torch.tensor([[1.0, 2.0], [3.0, 4.0]])},
    )
    values = reference.dequantize(blocks)
    assert [values[at].item() for at in ((0, 0), (127, 127), (127, 128), (128, 127), (128, 129))] == [1, 1, 2, 3, 4]
    with pytest.raises(Unsupported, match="no such format"):
        reference.dequantize(LinearWeight(weight=torch.zeros(1, 1), quantization="int3"))
