"""Model and generation configuration from every kind of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from drivetrain.config_files import GenerationConfig, load_generation_config, load_model_config
from drivetrain.errors import ModelError, ModelNotFound, UnsupportedModel
from tiny_gguf import HEADS, HIDDEN, KV_HEADS, LAYERS, VOCAB, WIDTH, decoder_metadata, write_gguf


def write(folder: Path, name: str, value: object) -> None:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def test_newer_fields_also_appear_under_the_older_names(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    write(tmp_path, "config.json", {"dtype": "bfloat16", "rope_parameters": {"rope_theta": 5e5, **scaling}})
    config = load_model_config(tmp_path)
    assert (config["torch_dtype"], config["rope_theta"], config["rope_scaling"]) == ("bfloat16", 5e5, scaling)
    write(tmp_path, "config.json", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}, "rope_theta": 7})
    config = load_model_config(tmp_path)
    assert config["rope_theta"] == 7
    assert "rope_scaling" not in config


def test_rotary_parameters_by_layer_type(tmp_path: Path) -> None:
    parameters = {
        "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    write(tmp_path, "config.json", {"text_config": {"rope_parameters": parameters, "num_local_experts": 4}})
    text = load_model_config(tmp_path)["text_config"]
    assert (text["rope_theta"], text["rope_local_base_freq"]) == (1e6, 1e4)
    assert text["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    assert text["num_experts"] == 4


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "mistral"])
def test_both_generations_of_transformers_give_the_same_rotary_fields(tmp_path: Path, model_type: str) -> None:
    from transformers import AutoConfig

    AutoConfig.for_model(model_type).save_pretrained(tmp_path)
    config = load_model_config(tmp_path)
    expected = {"llama": 1e4, "qwen3": 1e4, "gemma3_text": 1e6, "mistral": 1e4}[model_type]
    assert config["rope_theta"] == expected
    assert config.get("rope_local_base_freq") == (1e4 if model_type == "gemma3_text" else None)


def test_code_named_by_auto_map_is_never_run(tmp_path: Path) -> None:
    write(tmp_path, "config.json", {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}})
    write(tmp_path, "evil.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert load_model_config(tmp_path)["model_type"] == "evil"
    load_generation_config(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_absent_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"no config\.json in this folder"):
        load_model_config(tmp_path)
    with pytest.raises(ModelNotFound, match="no such folder"):
        load_model_config(tmp_path / "gone")
    for text, message in (("{", "not JSON"), ("[]", "expected a JSON object, got list"), ("[" * 10**5, "not JSON")):
        write(tmp_path, "config.json", text)
        with pytest.raises(ModelError, match=message):
            load_model_config(tmp_path)
    write(tmp_path, "config.json", " " * (17 << 20))
    with pytest.raises(ModelError, match="larger than"):
        load_model_config(tmp_path)


def test_generation_defaults(tmp_path: Path) -> None:
    assert load_generation_config(tmp_path) == GenerationConfig()
    write(tmp_path, "config.json", {"eos_token_id": 7})
    assert load_generation_config(tmp_path).eos_token_ids == (7,)
    raw = {"eos_token_id": [3, 4, 3], "temperature": 0.6, "top_p": 1, "top_k": 20, "do_sample": True, "bos_token_id": 1}
    write(tmp_path, "generation_config.json", raw)
    assert load_generation_config(tmp_path) == GenerationConfig(
        eos_token_ids=(3, 4), bos_token_id=1, temperature=0.6, top_p=1.0, top_k=20, do_sample=True
    )


@pytest.mark.parametrize(
    "raw", [{"eos_token_id": "</s>"}, {"eos_token_id": [-1]}, {"top_k": 1.5}, {"temperature": "x"}]
)
def test_generation_values_of_the_wrong_type_are_named(tmp_path: Path, raw: dict[str, Any]) -> None:
    write(tmp_path, "generation_config.json", raw)
    with pytest.raises(ModelError, match=rf"generation_config\.json: {next(iter(raw))} is"):
        load_generation_config(tmp_path)


EMBEDDING = {"token_embd.weight": (np.zeros((VOCAB, HIDDEN)), Kind.F32)}


def gguf_config(folder: Path, architecture: str, tensors: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    metadata = decoder_metadata(**keys)
    return load_model_config(write_gguf(folder / "m.gguf", architecture, metadata, {**EMBEDDING, **(tensors or {})}))


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma", "olmo2", "granite", "phi3"])
def test_gguf_metadata_becomes_a_config_that_transformers_accepts(tmp_path: Path, architecture: str) -> None:
    from transformers import AutoConfig

    config = gguf_config(tmp_path, architecture)
    assert config["vocab_size"] == VOCAB
    assert config["tie_word_embeddings"] is True
    theirs = AutoConfig.for_model(**{**config, "pad_token_id": 0})
    assert (theirs.hidden_size, theirs.intermediate_size, theirs.num_hidden_layers) == (HIDDEN, WIDTH, LAYERS)
    assert (theirs.num_attention_heads, theirs.num_key_value_heads) == (HEADS, KV_HEADS)
    assert theirs.rms_norm_eps == 1e-5


def test_gguf_fills_in_what_gemma_3_files_leave_out(tmp_path: Path) -> None:
    keys = {".attention.key_length": 16, ".attention.sliding_window": 512, ".block_count": 7}
    config = gguf_config(tmp_path, "gemma3", **keys)
    assert (config["rope_local_base_freq"], config["query_pre_attn_scalar"]) == (10000.0, 16)
    assert config["hidden_activation"] == "gelu_pytorch_tanh"
    assert [kind == "full_attention" for kind in config["layer_types"]] == [False] * 5 + [True, False]


def test_gguf_rotary_scaling(tmp_path: Path) -> None:
    keys = {".rope.scaling.type": "yarn", ".rope.scaling.factor": 4.0, ".rope.scaling.original_context_length": 32}
    assert gguf_config(tmp_path, "qwen2", **keys)["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    with pytest.raises(UnsupportedModel, match=r"rope\.scaling\.type is spiral, expected none, linear"):
        gguf_config(tmp_path, "qwen2", **{".rope.scaling.type": "spiral"})


def test_llama_3_scaling_is_recovered_from_its_factors(tmp_path: Path) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    config = LlamaConfig(
        hidden_size=128 * HEADS, num_attention_heads=HEADS, rope_parameters={"rope_theta": 5e5, **scaling}
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 5e5 ** -(torch.arange(0, 128, 2).float() / 128)
    factors = {"rope_freqs.weight": ((plain / scaled).numpy(), Kind.F32)}
    keys = {".attention.key_length": 128, ".rope.freq_base": 5e5}
    assert gguf_config(tmp_path, "llama", factors, **keys)["rope_scaling"] == scaling
    wrong = {"rope_freqs.weight": (np.linspace(1, 3, 64), Kind.F32)}
    with pytest.raises(UnsupportedModel, match="not Llama 3's"):
        gguf_config(tmp_path, "llama", wrong, **keys)


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({}, {"new_decoder_architecture": False, "multi_query": True, "num_ln_in_parallel_attn": 1}),
        (
            {"blk.0.attn_norm_2.weight": (np.ones(4), Kind.F32)},
            {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2},
        ),
    ],
)
def test_both_falcon_designs_are_told_apart(tmp_path: Path, tensors: dict[str, Any], expected: dict[str, Any]) -> None:
    keys = {".attention.layer_norm_epsilon": 1e-5, ".attention.head_count_kv": 1}
    config = gguf_config(tmp_path, "falcon", tensors, **keys)
    assert expected.items() <= config.items()


def test_gguf_values_of_the_wrong_type_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"llama\.block_count is many, expected a whole number"):
        gguf_config(tmp_path, "llama", **{".block_count": "many"})
    with pytest.raises(UnsupportedModel, match="architecture 'rwkv7' is not served"):
        gguf_config(tmp_path, "rwkv7")
