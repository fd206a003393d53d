"""Every family against `transformers`: random small models, all parameters drawn wide, logits of every position."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from family_oracle import (
    VOCAB,
    Row,
    Session,
    assert_close,
    cpu_device,
    load_decoder,
    model_config,
    random_model,
    saved_tensors,
)

LLAMA_SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
NEOX_SIZES = {key: value for key, value in LLAMA_SIZES.items() if key != "num_key_value_heads"}
GEMMA_SIZES = {**LLAMA_SIZES, "head_dim": 16, "tie_word_embeddings": True}
FALCON_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.3],
    "long_factor": [1.5, 2.0, 4.0],
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
}

EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
"""Set wide, since the usual ones are too small to be seen in logits."""

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-gqa": ("LlamaConfig", {**LLAMA_SIZES}),
    "llama-mha-tied": ("LlamaConfig", {**LLAMA_SIZES, "num_key_value_heads": 6, "tie_word_embeddings": True}),
    "llama-mqa-biases-wide-heads": (
        "LlamaConfig",
        {**LLAMA_SIZES, "num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True, "head_dim": 16},
    ),
    "llama-yarn": ("LlamaConfig", {**LLAMA_SIZES, "rope_parameters": YARN}),
    "mistral-window": ("MistralConfig", {**LLAMA_SIZES, "sliding_window": 6}),
    "mistral-full": ("MistralConfig", {**LLAMA_SIZES, "sliding_window": None, "head_dim": 12}),
    "qwen2": ("Qwen2Config", {**LLAMA_SIZES, "tie_word_embeddings": True}),
    "qwen2-upper-windows": (
        "Qwen2Config",
        {
            **LLAMA_SIZES,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
        },
    ),
    "qwen3": ("Qwen3Config", {**LLAMA_SIZES, "head_dim": 16}),
    "qwen3-tied-biases": (
        "Qwen3Config",
        {**LLAMA_SIZES, "head_dim": 16, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "gemma": ("GemmaConfig", {**GEMMA_SIZES, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2Config",
        {
            **GEMMA_SIZES,
            "num_hidden_layers": 4,
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 8.0,
        },
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **GEMMA_SIZES,
            "num_hidden_layers": 7,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "sliding_window": 6,
            "query_pre_attn_scalar": 24,
        },
    ),
    "gemma3-linear-global": (
        "Gemma3TextConfig",
        {
            **GEMMA_SIZES,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": 5,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "falcon-mqa-parallel": ("FalconConfig", {**FALCON_SIZES, "multi_query": True, "parallel_attn": True}),
    "falcon-new-two-norms": (
        "FalconConfig",
        {**FALCON_SIZES, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    ),
    "falcon-new-one-norm": (
        "FalconConfig",
        {**FALCON_SIZES, "new_decoder_architecture": True, "num_kv_heads": 4, "num_ln_in_parallel_attn": 1},
    ),
    "falcon-alibi-sequential": (
        "FalconConfig",
        {**FALCON_SIZES, "multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    ),
    "falcon-rotary-untied": (
        "FalconConfig",
        {**FALCON_SIZES, "multi_query": False, "parallel_attn": True, "tie_word_embeddings": False},
    ),
    "gpt2": ("GPT2Config", {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    "gpt2-scales-untied": (
        "GPT2Config",
        {
            "n_embd": 48,
            "n_layer": 3,
            "n_head": 3,
            "n_positions": 64,
            "n_inner": 100,
            "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False,
        },
    ),
    "gpt-neox-parallel": (
        "GPTNeoXConfig",
        {**NEOX_SIZES, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    ),
    "gpt-neox-sequential": (
        "GPTNeoXConfig",
        {**NEOX_SIZES, "use_parallel_residual": False, "attention_bias": False, "hidden_act": "gelu_fast"},
    ),
    "phi3": ("Phi3Config", {**LLAMA_SIZES, "original_max_position_embeddings": 64}),
    "phi3-window": ("Phi3Config", {**LLAMA_SIZES, "sliding_window": 7, "original_max_position_embeddings": 64}),
    "phi3-longrope": (
        "Phi3Config",
        {**LLAMA_SIZES, "max_position_embeddings": 128, "original_max_position_embeddings": 64}
        | {"rope_parameters": LONGROPE},
    ),
    "olmo2": ("Olmo2Config", {**LLAMA_SIZES}),
    "olmo2-biases-tied": ("Olmo2Config", {**LLAMA_SIZES, "attention_bias": True, "tie_word_embeddings": True}),
    "stablelm": ("StableLmConfig", {**LLAMA_SIZES, "hidden_size": 96, "use_qkv_bias": True}),
    "stablelm-parallel-head-norms": (
        "StableLmConfig",
        {**LLAMA_SIZES, "hidden_size": 96, "qk_layernorm": True, "use_parallel_residual": True},
    ),
    "granite": (
        "GraniteConfig",
        {
            **LLAMA_SIZES,
            "embedding_multiplier": 3.0,
            "logits_scaling": 1.7,
            "residual_multiplier": 0.6,
            "attention_multiplier": 0.2,
        },
    ),
    "granite-tied-biases": (
        "GraniteConfig",
        {**LLAMA_SIZES, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "starcoder2": ("Starcoder2Config", {**LLAMA_SIZES, "sliding_window": 6, "tie_word_embeddings": True}),
    "starcoder2-plain": ("Starcoder2Config", {**LLAMA_SIZES, "use_bias": False}),
    "cohere": ("CohereConfig", {**LLAMA_SIZES, "logit_scale": 0.3, "tie_word_embeddings": True}),
    "cohere-head-norms": (
        "CohereConfig",
        {**LLAMA_SIZES, "use_qk_norm": True, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "cohere2": (
        "Cohere2Config",
        {**LLAMA_SIZES, "num_hidden_layers": 4, "sliding_window": 6, "tie_word_embeddings": True},
    ),
    "opt": (
        "OPTConfig",
        {"hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"max_position_embeddings": 64},
    ),
    "opt-350m": (
        "OPTConfig",
        {"hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"max_position_embeddings": 64, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    ),
    "opt-plain-norms": (
        "OPTConfig",
        {"hidden_size": 48, "ffn_dim": 80, "num_hidden_layers": 2, "num_attention_heads": 4}
        | {"max_position_embeddings": 64, "enable_bias": False, "layer_norm_elementwise_affine": False},
    ),
    "bloom": ("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4}),
    "bloom-odd-heads": ("BloomConfig", {"hidden_size": 48, "n_layer": 2, "n_head": 6}),
    "mpt": ("MptConfig", {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "mpt-clip-odd-heads": (
        "MptConfig",
        {"d_model": 48, "n_layers": 2, "n_heads": 6, "max_seq_len": 64, "attn_config": {"clip_qkv": 1.5}},
    ),
}


@lru_cache(maxsize=1)
def oracle(variant: str) -> Any:
    import transformers

    name, values = VARIANTS[variant]
    config = getattr(transformers, name)(**model_config(**values))
    for key in EPSILONS:
        if hasattr(config, key):
            setattr(config, key, 0.05)
    return random_model(config)


def sequence(length: int, seed: int) -> list[int]:
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.inference_mode()
def expected_logits(model: Any, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), use_cache=False).logits[0]


def session(model: Any) -> Session:
    device = cpu_device()
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    return Session(load_decoder(saved_tensors(model), config, device), device)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_a_whole_prompt_match_the_oracle(variant: str) -> None:
    model, ids = oracle(variant), sequence(29, 1)
    (logits,) = session(model).step([Row(0, 0, ids)], padding=3)
    assert_close(logits, expected_logits(model, ids))


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_of_a_chunked_prompt_match_the_oracle(variant: str) -> None:
    model, ids = oracle(variant), sequence(29, 1)
    driven, parts, start = session(model), [], 0
    for size in (5, 1, 11, 3, 9):
        parts += driven.step([Row(2, start, ids[start : start + size])])
        start += size
    assert start == len(ids)
    assert_close(torch.cat(parts), expected_logits(model, ids))


@pytest.mark.parametrize("variant", VARIANTS)
def test_ragged_rows_that_decode_together_match_the_oracle(variant: str) -> None:
    model, driven = oracle(variant), session(oracle(variant))
    texts = [sequence(23, 2), sequence(9, 3), sequence(14, 4)]
    starts = [17, 3, 8]
    prompts = [Row(i, 0, texts[i][:start]) for i, start in enumerate(starts)]
    parts = [[logits] for logits in driven.step(prompts)]
    for offset in range(6):
        rows = [Row(i, n + offset, [texts[i][n + offset]]) for i, n in enumerate(starts)]
        for part, logits in zip(parts, driven.step(rows, padding=offset % 2), strict=True):
            part.append(logits)
    for part, ids in zip(parts, texts, strict=True):
        assert_close(torch.cat(part), expected_logits(model, ids))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_sequence_on_anothers_prefix_pages_matches_the_oracle(variant: str) -> None:
    model, driven = oracle(variant), session(oracle(variant))
    first = sequence(22, 5)
    second = first[:12] + sequence(9, 6)
    driven.step([Row(0, 0, first)])
    driven.share(0, 1, 3)
    (logits,) = driven.step([Row(1, 12, second[12:])])
    assert_close(logits, expected_logits(model, second)[12:])
    (again,) = driven.step([Row(0, len(first), [5])])
    assert_close(again, expected_logits(model, [*first, 5])[-1:])


@pytest.mark.parametrize("layout", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_seeing_model_runs_under_both_layouts_of_names(layout: str) -> None:
    model, ids = oracle("gemma3"), sequence(12, 7)
    text = {layout + name.removeprefix("model."): tensor for name, tensor in saved_tensors(model).items()}
    vision = {"vision_tower.encoder.weight": torch.zeros(1), "multi_modal_projector.norm.weight": torch.zeros(1)}
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": model.config.to_dict()}
    device = cpu_device()
    (logits,) = Session(load_decoder(text | vision, config, device), device).step([Row(0, 0, ids)])
    assert_close(logits, expected_logits(model, ids))
