"""GGUF metadata to the `config.json` that the model would have in a Hugging Face folder.

What a file leaves out because llama.cpp has it in code (Gemma's windows and query scale, activation functions) is
filled in here; what neither says is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from drivetrain.errors import UnsupportedModel
from drivetrain.weights.gguf_header import GGUFHeader
from drivetrain.weights.gguf_metadata import GGUFMetadata
from drivetrain.weights.gguf_rotary import rope_scaling

Config = dict[str, Any]


def gguf_model_config(header: GGUFHeader) -> Config:
    """The model's configuration in the form of a Hugging Face `config.json`.

    Raises:
        UnsupportedModel: an architecture or variant that is not served, or metadata of the wrong type.
        WeightError: no embedding matrix.
    """
    metadata = GGUFMetadata(header)
    build = _BUILDERS.get(metadata.architecture)
    if build is None:
        raise UnsupportedModel(
            f"{header.path}: GGUF architecture {metadata.architecture!r} is not served; "
            f"known are {', '.join(sorted(_BUILDERS))}"
        )
    if metadata.integer("expert_count", 0):
        raise UnsupportedModel(
            f"{header.path}: a mixture of experts in GGUF is not served; use the model's safetensors folder"
        )
    config = build(metadata)
    config["vocab_size"] = metadata.rows("token_embd.weight")
    config["tie_word_embeddings"] = not metadata.has("output.weight")
    for key, field in (("bos_token_id", "bos_token_id"), ("eos_token_id", "eos_token_id")):
        value = header.metadata.get(f"tokenizer.ggml.{key}")
        if isinstance(value, int):
            config[field] = value
    return config


def _decoder(metadata: GGUFMetadata, model_type: str, class_name: str, activation: str) -> Config:
    """Fields that all the Llama-like families share."""
    heads = metadata.integer("attention.head_count")
    hidden = metadata.integer("embedding_length")
    if not heads or not hidden:
        raise metadata.fail("attention.head_count", heads, "at least one head")
    head_dim = metadata.integer("attention.key_length", hidden // heads)
    config: Config = {
        "model_type": model_type,
        "architectures": [class_name],
        "hidden_size": hidden,
        "intermediate_size": metadata.integer("feed_forward_length"),
        "num_hidden_layers": metadata.integer("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": metadata.integer("context_length"),
        "hidden_act": activation,
        "rope_theta": metadata.number("rope.freq_base", 10000.0),
        "attention_bias": metadata.has("blk.0.attn_q.bias"),
        "mlp_bias": metadata.has("blk.0.ffn_up.bias"),
    }
    epsilon = metadata.find("attention.layer_norm_rms_epsilon")
    if epsilon is not None:
        config["rms_norm_eps"] = metadata.number("attention.layer_norm_rms_epsilon")
    else:
        config["layer_norm_eps"] = metadata.number("attention.layer_norm_epsilon")
    scaling = rope_scaling(metadata, base=config["rope_theta"], head_dim=head_dim)
    if scaling:
        config["rope_scaling"] = scaling
    return config


def _llama(metadata: GGUFMetadata) -> Config:
    config = _decoder(metadata, "llama", "LlamaForCausalLM", "silu")
    window = metadata.integer("attention.sliding_window", 0)
    if window:
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window}
    return config


def _granite(metadata: GGUFMetadata) -> Config:
    config = _decoder(metadata, "granite", "GraniteForCausalLM", "silu")
    return config | {
        "embedding_multiplier": metadata.number("embedding_scale", 1.0),
        "attention_multiplier": metadata.number("attention.scale", 1.0),
        "residual_multiplier": metadata.number("residual_scale", 1.0),
        "logits_scaling": metadata.number("logit_scale", 1.0),
    }


def _qwen2(metadata: GGUFMetadata) -> Config:
    return _decoder(metadata, "qwen2", "Qwen2ForCausalLM", "silu") | {"use_sliding_window": False}


def _qwen3(metadata: GGUFMetadata) -> Config:
    return _decoder(metadata, "qwen3", "Qwen3ForCausalLM", "silu") | {"use_sliding_window": False}


def _gemma_base(metadata: GGUFMetadata, model_type: str, class_name: str) -> Config:
    config = _decoder(metadata, model_type, class_name, "gelu_pytorch_tanh")
    return config | {"hidden_activation": config["hidden_act"]}


def _gemma(metadata: GGUFMetadata) -> Config:
    return _gemma_base(metadata, "gemma", "GemmaForCausalLM")


def _gemma_query_scale(metadata: GGUFMetadata, config: Config, layers_of_27b: int) -> int:
    """The 27B models scale queries by width over heads, all others by the head size."""
    if config["num_hidden_layers"] == layers_of_27b:
        return config["hidden_size"] // config["num_attention_heads"]
    return config["head_dim"]


def _gemma2(metadata: GGUFMetadata) -> Config:
    config = _gemma_base(metadata, "gemma2", "Gemma2ForCausalLM")
    return config | {
        "query_pre_attn_scalar": _gemma_query_scale(metadata, config, 46),
        "sliding_window": metadata.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0),
    }


def _gemma3(metadata: GGUFMetadata) -> Config:
    config = _gemma_base(metadata, "gemma3_text", "Gemma3ForCausalLM")
    layers = config["num_hidden_layers"]
    return config | {
        "query_pre_attn_scalar": _gemma_query_scale(metadata, config, 62),
        "sliding_window": metadata.integer("attention.sliding_window"),
        "sliding_window_pattern": 6,
        "layer_types": ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(layers)],
        "rope_local_base_freq": 10000.0,
        "rope_theta": metadata.number("rope.freq_base", 1_000_000.0),
    }


def _phi3(metadata: GGUFMetadata) -> Config:
    config = _decoder(metadata, "phi3", "Phi3ForCausalLM", "silu")
    rotary = metadata.integer("rope.dimension_count", config["head_dim"])
    config["partial_rotary_factor"] = rotary / config["head_dim"]
    config["original_max_position_embeddings"] = metadata.integer(
        "rope.scaling.original_context_length", config["max_position_embeddings"]
    )
    window = metadata.integer("attention.sliding_window", 0)
    config["sliding_window"] = window or None
    if metadata.has("rope_factors_long.weight", "rope_factors_short.weight"):
        config["rope_scaling"] = {
            "rope_type": "longrope",
            "long_factor": metadata.numbers("rope_factors_long.weight"),
            "short_factor": metadata.numbers("rope_factors_short.weight"),
        }
    return config


def _olmo2(metadata: GGUFMetadata) -> Config:
    return _decoder(metadata, "olmo2", "Olmo2ForCausalLM", "silu")


def _starcoder2(metadata: GGUFMetadata) -> Config:
    config = _decoder(metadata, "starcoder2", "Starcoder2ForCausalLM", "gelu_pytorch_tanh")
    return config | {
        "norm_epsilon": config["layer_norm_eps"],
        "use_bias": config["attention_bias"],
        "sliding_window": metadata.integer("attention.sliding_window", 0) or None,
    }


def _stablelm(metadata: GGUFMetadata) -> Config:
    config = _decoder(metadata, "stablelm", "StableLmForCausalLM", "silu")
    return config | {
        "use_qkv_bias": config["attention_bias"],
        "use_parallel_residual": bool(metadata.find("use_parallel_residual")),
        "qk_layernorm": False,
        "partial_rotary_factor": metadata.integer("rope.dimension_count") / config["head_dim"],
    }


def _command_r(metadata: GGUFMetadata) -> Config:
    return _decoder(metadata, "cohere", "CohereForCausalLM", "silu") | {
        "logit_scale": metadata.number("logit_scale"),
        "use_qk_norm": False,
    }


def _gpt2(metadata: GGUFMetadata) -> Config:
    return {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "n_embd": metadata.integer("embedding_length"),
        "n_layer": metadata.integer("block_count"),
        "n_head": metadata.integer("attention.head_count"),
        "n_inner": metadata.integer("feed_forward_length"),
        "n_positions": metadata.integer("context_length"),
        "activation_function": "gelu_new",
        "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
    }


def _falcon(metadata: GGUFMetadata) -> Config:
    heads = metadata.integer("attention.head_count")
    kv_heads = metadata.integer("attention.head_count_kv", heads)
    two_norms = metadata.has("blk.0.attn_norm_2.weight")
    return {
        "model_type": "falcon",
        "architectures": ["FalconForCausalLM"],
        "hidden_size": metadata.integer("embedding_length"),
        "num_hidden_layers": metadata.integer("block_count"),
        "num_attention_heads": heads,
        "num_kv_heads": kv_heads,
        "multi_query": kv_heads == 1,
        "new_decoder_architecture": two_norms or 1 < kv_heads < heads,
        "num_ln_in_parallel_attn": 2 if two_norms else 1,
        "parallel_attn": True,
        "alibi": False,
        "bias": metadata.has("blk.0.attn_qkv.bias"),
        "ffn_hidden_size": metadata.integer("feed_forward_length"),
        "max_position_embeddings": metadata.integer("context_length"),
        "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
        "rope_theta": metadata.number("rope.freq_base", 10000.0),
        "activation": "gelu",
    }


def _gptneox(metadata: GGUFMetadata) -> Config:
    heads = metadata.integer("attention.head_count")
    hidden = metadata.integer("embedding_length")
    head_dim = hidden // max(heads, 1)
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": metadata.integer("feed_forward_length"),
        "num_hidden_layers": metadata.integer("block_count"),
        "num_attention_heads": heads,
        "max_position_embeddings": metadata.integer("context_length"),
        "layer_norm_eps": metadata.number("attention.layer_norm_epsilon"),
        "rotary_pct": metadata.integer("rope.dimension_count", head_dim) / max(head_dim, 1),
        "rotary_emb_base": metadata.number("rope.freq_base", 10000.0),
        "rope_theta": metadata.number("rope.freq_base", 10000.0),
        "use_parallel_residual": bool(metadata.header.metadata.get("gptneox.use_parallel_residual", True)),
        "attention_bias": metadata.has("blk.0.attn_qkv.bias"),
        "hidden_act": "gelu",
    }


def _bloom(metadata: GGUFMetadata) -> Config:
    return {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        "hidden_size": metadata.integer("embedding_length"),
        "n_layer": metadata.integer("block_count"),
        "n_head": metadata.integer("attention.head_count"),
        "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
        "seq_length": metadata.integer("context_length"),
    }


def _mpt(metadata: GGUFMetadata) -> Config:
    heads = metadata.integer("attention.head_count")
    hidden = metadata.integer("embedding_length")
    alibi_max = metadata.number("attention.max_alibi_bias", 0.0)
    clip = metadata.number("attention.clamp_kqv", 0.0)
    return {
        "model_type": "mpt",
        "architectures": ["MptForCausalLM"],
        "d_model": hidden,
        "n_heads": heads,
        "n_layers": metadata.integer("block_count"),
        "max_seq_len": metadata.integer("context_length"),
        "expansion_ratio": metadata.integer("feed_forward_length") // max(hidden, 1),
        "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon", 1e-5),
        "no_bias": not metadata.has("blk.0.attn_qkv.bias"),
        "attn_config": {
            "alibi": alibi_max > 0,
            "alibi_bias_max": alibi_max,
            "clip_qkv": clip or None,
            "kv_n_heads": metadata.integer("attention.head_count_kv", heads),
        },
    }


_BUILDERS: dict[str, Callable[[GGUFMetadata], Config]] = {
    "llama": _llama,
    "granite": _granite,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "starcoder2": _starcoder2,
    "stablelm": _stablelm,
    "command-r": _command_r,
    "gpt2": _gpt2,
    "falcon": _falcon,
    "gptneox": _gptneox,
    "bloom": _bloom,
    "mpt": _mpt,
}
