"""GGUF metadata to the `config.json` that the model would have in a Hugging Face folder.

What a file leaves out because llama.cpp has it in code (Gemma's windows and query scale, activation functions) is
filled in here; what neither says is an error, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from drivetrain.errors import UnsupportedModel, WeightError
from drivetrain.weights.gguf_header import GGUFHeader

Config = dict[str, Any]


class _Metadata:
    """Typed look-ups under the architecture's prefix."""

    def __init__(self, header: GGUFHeader) -> None:
        self.header = header
        self.architecture = header.architecture

    def fail(self, key: str, value: object, expected: str) -> UnsupportedModel:
        return UnsupportedModel(
            f"{self.header.path}: {self.architecture}.{key} is {str(value)[:60]}, expected {expected}; "
            f"convert the model again or use its safetensors folder"
        )

    def find(self, key: str) -> object:
        return self.header.metadata.get(f"{self.architecture}.{key}")

    def integer(self, key: str, default: int | None = None) -> int:
        value = self.find(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or not 0 <= value < 2**31:
            raise self.fail(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.find(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fail(key, value, "a number")
        # The file holds 32-bit floats: 9.999999747378752e-06 was written as 1e-5.
        return float(f"{value:.7g}")

    def has(self, *tensors: str) -> bool:
        return all(name in self.header.tensors for name in tensors)

    def rows(self, tensor: str) -> int:
        found = self.header.tensors.get(tensor)
        if found is None or len(found.shape) != 2:
            raise WeightError(f"{self.header.path}: no matrix {tensor!r}, which every model has; download it again")
        return found.shape[0]


def gguf_model_config(header: GGUFHeader) -> Config:
    """The model's configuration in the form of a Hugging Face `config.json`.

    Raises:
        UnsupportedModel: an architecture or variant that is not served, or metadata of the wrong type.
        WeightError: no embedding matrix.
    """
    metadata = _Metadata(header)
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


def _decoder(metadata: _Metadata, model_type: str, class_name: str, activation: str) -> Config:
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
    scaling = _rope_scaling(metadata, config)
    if scaling:
        config["rope_scaling"] = scaling
    return config


def _rope_scaling(metadata: _Metadata, config: Config) -> Config | None:
    if metadata.has("rope_freqs.weight"):
        return _llama3_scaling(metadata, config)
    kind = metadata.find("rope.scaling.type")
    if kind in (None, "none"):
        return None
    factor = metadata.number("rope.scaling.factor", 1.0)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None
    if kind == "yarn":
        scaling: Config = {"rope_type": "yarn", "factor": factor}
        if metadata.find("rope.scaling.original_context_length") is not None:
            scaling["original_max_position_embeddings"] = metadata.integer("rope.scaling.original_context_length")
        return scaling
    if kind == "longrope":
        return None  # read from its own tensors by the families that have it
    raise metadata.fail("rope.scaling.type", kind, "none, linear, yarn or longrope")


def _llama3_scaling(metadata: _Metadata, config: Config) -> Config:
    """Llama 3's scaling: the file holds its factors only, so the parameters are found and checked against them."""
    import torch

    factors = _tensor(metadata, "rope_freqs.weight")
    base, head_dim = config["rope_theta"], config["head_dim"]
    factor = float(f"{factors.max().item():.6g}")
    original = metadata.integer("rope.scaling.original_context_length", 8192)
    low, high = 1.0, 4.0
    wavelengths = 2 * math.pi * base ** (torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    smooth = (original / wavelengths - low) / (high - low)
    expected = 1 / ((1 - smooth) / factor + smooth)
    expected = torch.where(wavelengths < original / high, torch.ones_like(expected), expected)
    expected = torch.where(wavelengths > original / low, torch.full_like(expected, factor), expected)
    if factors.shape != expected.shape or not torch.allclose(factors.double(), expected, rtol=1e-3):
        raise UnsupportedModel(
            f"{metadata.header.path}: rope_freqs.weight holds rotary factors that are not Llama 3's; "
            f"use the model's safetensors folder"
        )
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _tensor(metadata: _Metadata, name: str) -> Any:
    """A small tensor that is configuration rather than weight."""
    import torch

    stored = metadata.header.tensors[name]
    if stored.type_id != 0 or stored.num_bytes > 1 << 20:
        raise WeightError(f"{metadata.header.path}: {name!r} is not a small float32 tensor; convert the model again")
    with metadata.header.path.open("rb") as file:
        file.seek(stored.offset)
        return torch.frombuffer(bytearray(file.read(stored.num_bytes)), dtype=torch.float32)


def _llama(metadata: _Metadata) -> Config:
    config = _decoder(metadata, "llama", "LlamaForCausalLM", "silu")
    window = metadata.integer("attention.sliding_window", 0)
    if window:
        config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window}
    return config


def _granite(metadata: _Metadata) -> Config:
    config = _decoder(metadata, "granite", "GraniteForCausalLM", "silu")
    return config | {
        "embedding_multiplier": metadata.number("embedding_scale", 1.0),
        "attention_multiplier": metadata.number("attention.scale", 1.0),
        "residual_multiplier": metadata.number("residual_scale", 1.0),
        "logits_scaling": metadata.number("logit_scale", 1.0),
    }


def _qwen2(metadata: _Metadata) -> Config:
    return _decoder(metadata, "qwen2", "Qwen2ForCausalLM", "silu") | {"use_sliding_window": False}


def _qwen3(metadata: _Metadata) -> Config:
    return _decoder(metadata, "qwen3", "Qwen3ForCausalLM", "silu") | {"use_sliding_window": False}


def _gemma_base(metadata: _Metadata, model_type: str, class_name: str) -> Config:
    config = _decoder(metadata, model_type, class_name, "gelu_pytorch_tanh")
    return config | {"hidden_activation": config["hidden_act"]}


def _gemma(metadata: _Metadata) -> Config:
    return _gemma_base(metadata, "gemma", "GemmaForCausalLM")


def _gemma_query_scale(metadata: _Metadata, config: Config, layers_of_27b: int) -> int:
    """The 27B models scale queries by width over heads, all others by the head size."""
    if config["num_hidden_layers"] == layers_of_27b:
        return config["hidden_size"] // config["num_attention_heads"]
    return config["head_dim"]


def _gemma2(metadata: _Metadata) -> Config:
    config = _gemma_base(metadata, "gemma2", "Gemma2ForCausalLM")
    return config | {
        "query_pre_attn_scalar": _gemma_query_scale(metadata, config, 46),
        "sliding_window": metadata.integer("attention.sliding_window", 4096),
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0),
    }


def _gemma3(metadata: _Metadata) -> Config:
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


def _phi3(metadata: _Metadata) -> Config:
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
            "long_factor": _tensor(metadata, "rope_factors_long.weight").tolist(),
            "short_factor": _tensor(metadata, "rope_factors_short.weight").tolist(),
        }
    return config


def _olmo2(metadata: _Metadata) -> Config:
    return _decoder(metadata, "olmo2", "Olmo2ForCausalLM", "silu")


def _starcoder2(metadata: _Metadata) -> Config:
    config = _decoder(metadata, "starcoder2", "Starcoder2ForCausalLM", "gelu_pytorch_tanh")
    return config | {
        "norm_epsilon": config["layer_norm_eps"],
        "use_bias": config["attention_bias"],
        "sliding_window": metadata.integer("attention.sliding_window", 0) or None,
    }


def _stablelm(metadata: _Metadata) -> Config:
    config = _decoder(metadata, "stablelm", "StableLmForCausalLM", "silu")
    return config | {
        "use_qkv_bias": config["attention_bias"],
        "use_parallel_residual": bool(metadata.find("use_parallel_residual")),
        "qk_layernorm": False,
        "partial_rotary_factor": metadata.integer("rope.dimension_count") / config["head_dim"],
    }


def _command_r(metadata: _Metadata) -> Config:
    return _decoder(metadata, "cohere", "CohereForCausalLM", "silu") | {
        "logit_scale": metadata.number("logit_scale"),
        "use_qk_norm": False,
    }


def _gpt2(metadata: _Metadata) -> Config:
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


def _falcon(metadata: _Metadata) -> Config:
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


def _gptneox(metadata: _Metadata) -> Config:
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


def _bloom(metadata: _Metadata) -> Config:
    return {
        "model_type": "bloom",
        "architectures": ["BloomForCausalLM"],
        "hidden_size": metadata.integer("embedding_length"),
        "n_layer": metadata.integer("block_count"),
        "n_head": metadata.integer("attention.head_count"),
        "layer_norm_epsilon": metadata.number("attention.layer_norm_epsilon"),
        "seq_length": metadata.integer("context_length"),
    }


def _mpt(metadata: _Metadata) -> Config:
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


_BUILDERS: dict[str, Callable[[_Metadata], Config]] = {
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
