"""Requests that ask for more than a device's sampler has are refused by the name of their field."""

from __future__ import annotations

import pytest

from drivetrain.errors import RequestError
from drivetrain.grammar import Grammar
from drivetrain.sampling import SamplingParams, check_served
from drivetrain_plugins.contract.capabilities import EVERY_SAMPLING_FEATURE

ASKING = {
    "temperature": ({"temperature": 0.5}, "random"),
    "top_p": ({"top_p": 0.9}, "filters"),
    "top_k": ({"top_k": 5}, "filters"),
    "min_p": ({"min_p": 0.1}, "filters"),
    "presence_penalty": ({"presence_penalty": 0.5}, "penalties"),
    "frequency_penalty": ({"frequency_penalty": 0.5}, "penalties"),
    "repetition_penalty": ({"repetition_penalty": 1.1}, "penalties"),
    "logit_bias": ({"logit_bias": {3: 1.0}}, "biases"),
    "bad_words": ({"bad_words": ("no",)}, "biases"),
    "min_tokens": ({"min_tokens": 2}, "biases"),
    "logprobs": ({"logprobs": 0}, "logprobs"),
    "prompt_logprobs": ({"prompt_logprobs": 3}, "prompt_logprobs"),
    "grammar": ({"grammar": Grammar(kind="json_object")}, "masks"),
}


@pytest.mark.parametrize("name", ASKING)
def test_field_that_the_sampler_cannot_serve_is_named(name):
    values, feature = ASKING[name]
    params = SamplingParams(**values)
    check_served(params, EVERY_SAMPLING_FEATURE, "a device")
    with pytest.raises(RequestError, match=f"^{name}: got .*, but a device samples without") as caught:
        check_served(params, EVERY_SAMPLING_FEATURE - {feature}, "a device")
    assert caught.value.param == name


def test_plain_greedy_request_needs_nothing():
    check_served(SamplingParams(temperature=0.0, top_p=0.5, seed=3, stop=("x",)), frozenset(), "a device")
