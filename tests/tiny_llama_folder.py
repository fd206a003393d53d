"""A model folder with a small random Llama, for tests that start from a configuration."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

VOCAB_SIZE = 199
END_ID = 5


def write_tiny_llama(folder: Path, *, seed: int = 0, vocab_size: int = VOCAB_SIZE, **changes: object) -> Path:
    """Write `config.json` and `model.safetensors`; weights are large enough that every token depends on all before.

    Args:
        changes: further keys of the configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config: dict[str, object] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": END_ID,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config | changes))
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * 1.5 * columns**-0.5

    tensors = {"model.embed_tokens.weight": torch.randn(vocab_size, 64, generator=generator)}
    for index in range(3):
        prefix = f"model.layers.{index}"
        for name, rows, columns in (("q", 64, 64), ("k", 32, 64), ("v", 32, 64), ("o", 64, 64)):
            tensors[f"{prefix}.self_attn.{name}_proj.weight"] = matrix(rows, columns)
        for name, rows, columns in (("gate", 96, 64), ("up", 96, 64), ("down", 64, 96)):
            tensors[f"{prefix}.mlp.{name}_proj.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{name}.weight"] = 1 + 0.2 * torch.randn(64, generator=generator)
    tensors["model.norm.weight"] = 1 + 0.2 * torch.randn(64, generator=generator)
    tensors["lm_head.weight"] = matrix(vocab_size, 64)
    save_file(tensors, folder / "model.safetensors")
    return folder
