"""Which entry of the tables of products a shape takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from drivetrain_triton.linear_tables import every_entry, linear_config

CONFIGS = Path(__file__).parents[1] / "data/configs"


@pytest.mark.parametrize("tokens", [1, 2])
@pytest.mark.parametrize("model", ["Llama-3.1-8B", "Qwen3-0.6B", "Llama-3.2-1B"])
def test_products_of_one_stream_are_measured_with_their_own_shapes(model: str, tokens: int) -> None:
    config = json.loads((CONFIGS / f"{model}.json").read_text())
    hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    shapes = {
        ((heads + 2 * config["num_key_value_heads"]) * size, hidden, False),
        (hidden, heads * size, False),
        (inner, hidden, True),
        (hidden, inner, False),
        (config["vocab_size"], hidden, False),
    }
    measured = {(entry.n, entry.k, entry.gate) for entry in every_entry("sm_90") if entry.tokens == tokens}
    assert shapes <= measured


@pytest.mark.parametrize("k", [512, 576, 1024, 1536])
def test_no_round_is_longer_than_the_inputs(k: int) -> None:
    for tokens in (1, 2, 16):
        for n in (k, 4 * k, 150_000):
            config = linear_config("sm_90", tokens, n, k, gate=False)
            assert config is not None and config.bk <= k


def test_a_shape_smaller_than_every_round_still_has_a_configuration() -> None:
    assert linear_config("sm_90", 1, 64, 64, gate=False) is not None
