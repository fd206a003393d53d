"""What a model's authors recommend, on devices that sample by all of it, by some, and by nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drivetrain.generation_defaults import GenerationDefaults
from drivetrain.sampling import SamplingParams, check_served
from drivetrain_plugins.contract.capabilities import SamplingFeature
from fakes.engine import INFO

RECOMMENDED = GenerationDefaults(temperature=0.6, top_p=0.9, top_k=20, repetition_penalty=1.1)


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        (
            {"random", "filters", "penalties"},
            {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1},
        ),
        ({"random", "penalties"}, {"temperature": 0.6, "repetition_penalty": 1.1}),
        ({"random"}, {"temperature": 0.6}),
        (set(), {"temperature": 0.0}),
    ],
)
def test_what_nobody_asked_for_makes_no_device_refuse_a_request(
    served: set[SamplingFeature], expected: dict[str, float], caplog: pytest.LogCaptureFixture
) -> None:
    info = replace(INFO, device="Toy One", sampling=tuple(served))
    kept = RECOMMENDED.within(info)
    assert kept.given() == expected
    check_served(kept.params(), info.sampling, info.device)
    assert [record.getMessage().split(" does ")[0] for record in caplog.records] == (
        [] if kept == RECOMMENDED else ["Toy One"]
    )


def test_a_device_that_draws_nothing_takes_the_likeliest_token_unasked() -> None:
    info = replace(INFO, sampling=())
    assert GenerationDefaults().within(info).params() == SamplingParams(temperature=0.0)
    assert GenerationDefaults().within(INFO) == GenerationDefaults()
