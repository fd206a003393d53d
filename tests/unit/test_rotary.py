"""Frequencies and attention factors of every rotary scaling against `transformers`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from drivetrain.errors import UnsupportedModel
from drivetrain.models.families import decoder_spec
from drivetrain.models.rotary import inverse_frequencies, rotary_table
from drivetrain_plugins.contract.model import RotarySpec

MAX_POSITIONS = 4096
HEAD_DIM = 24
FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(9)], "long_factor": [2.0 + 0.3 * i for i in range(9)]}

SCALINGS: dict[str, dict[str, Any]] = {
    "none": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 128,
    },
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512},
    "yarn-exact-range": {
        "rope_type": "yarn",
        "factor": 32.0,
        "original_max_position_embeddings": 128,
        "beta_fast": 24.0,
        "beta_slow": 2.0,
        "truncate": False,
    },
    "yarn-magnitudes": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 512,
        "mscale": 0.7,
        "mscale_all_dim": 0.3,
    },
    "yarn-factor": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 512,
        "attention_factor": 1.25,
    },
    "longrope": {"rope_type": "longrope", "original_max_position_embeddings": 1024, **FACTORS},
    "longrope-factor": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 1024,
        "factor": 16.0,
        **FACTORS,
    },
    "longrope-attention": {
        "rope_type": "longrope",
        "original_max_position_embeddings": 1024,
        "attention_factor": 1.19,
        **FACTORS,
    },
}
LENGTHS = {"dynamic": (2048, 4096, 9000), "longrope": (1024, 1025, 4096)}


def old_config(scaling: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 10,
        "hidden_size": 48,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_theta": 50000.0,
        "partial_rotary_factor": 0.75,
        "rope_scaling": scaling,
        **more,
    }


def rotary_of(config: dict[str, Any]) -> RotarySpec:
    rotary = decoder_spec(config).layers[0].mixer.rotary
    assert rotary is not None
    return rotary


def oracle(scaling: dict[str, Any], length: int) -> tuple[torch.Tensor, float]:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    shared = {"rope_theta": 50000.0, "partial_rotary_factor": 0.75}
    config = LlamaConfig(
        hidden_size=48,
        num_attention_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={**scaling, **shared},
    )
    return ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"), seq_len=length)


@pytest.mark.parametrize("name", [name for name in SCALINGS if name != "none"])
def test_frequencies_and_factor_match_the_oracle(name: str) -> None:
    spec = rotary_of(old_config(SCALINGS[name]))
    for length in LENGTHS.get(name.partition("-")[0], (MAX_POSITIONS,)):
        got, factor = inverse_frequencies(spec, length)
        expected, expected_factor = oracle(SCALINGS[name], length)
        torch.testing.assert_close(got, expected, rtol=1e-6, atol=0)
        assert factor == pytest.approx(expected_factor, rel=1e-12)


@pytest.mark.parametrize("name", SCALINGS)
def test_both_generations_of_configurations_say_the_same(name: str) -> None:
    scaling = SCALINGS[name]
    new = old_config(None)
    del new["rope_theta"], new["partial_rotary_factor"], new["rope_scaling"]
    new["rope_parameters"] = {**scaling, "rope_theta": 50000.0, "partial_rotary_factor": 0.75}
    oldest = {"type" if key == "rope_type" else key: value for key, value in scaling.items()}
    assert rotary_of(new) == rotary_of(old_config(scaling)) == rotary_of(old_config(oldest))


def test_unscaled_frequencies_are_powers_of_the_base_over_the_rotated_part() -> None:
    got, factor = inverse_frequencies(rotary_of(old_config(None)), MAX_POSITIONS)
    torch.testing.assert_close(got, torch.tensor([50000.0 ** (-2 * j / 18) for j in range(9)]))
    assert factor == 1.0


def test_longrope_changes_lists_where_the_engine_admits_more_than_the_original_length() -> None:
    spec = rotary_of(old_config(SCALINGS["longrope"]))
    plain, _ = inverse_frequencies(rotary_of(old_config(None)), 1)
    torch.testing.assert_close(plain / inverse_frequencies(spec, 1024)[0], torch.tensor(FACTORS["short_factor"]))
    torch.testing.assert_close(plain / inverse_frequencies(spec, 1025)[0], torch.tensor(FACTORS["long_factor"]))


def test_a_table_holds_scaled_cosines_and_sines_of_each_position() -> None:
    spec = rotary_of(old_config(SCALINGS["yarn-factor"]))
    table = rotary_table(spec, max_model_len=10, positions=16, device=torch.device("cpu"))
    frequencies, _ = inverse_frequencies(spec, 10)
    assert table.cos_PF.shape == (16, 9) and table.cos_PF.dtype == torch.float32 and not table.interleaved
    torch.testing.assert_close(table.cos_PF[7], 1.25 * torch.cos(7 * frequencies))
    torch.testing.assert_close(table.sin_PF[7], 1.25 * torch.sin(7 * frequencies))


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"rope_type": "mrope", "mrope_section": [2, 3]}, "rope_type = 'mrope'"),
        ({"rope_type": "linear", "factor": "2"}, "factor = '2'"),
        ({"rope_type": "linear"}, "lacks factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}, "lacks high_freq_factor"),
        ({"rope_type": "yarn", "factor": 8.0, "beta_medium": 3.0}, "beta_medium = 3.0"),
        ({**SCALINGS["longrope"], "long_factor": [1.0]}, "long_factor = '1 entries'"),
        ({**SCALINGS["longrope"], "short_factor": ["a"] * 9}, "short_factor = 'a'"),
    ],
)
def test_a_scaling_that_is_not_served_is_refused_by_name(scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        decoder_spec(old_config(scaling))
