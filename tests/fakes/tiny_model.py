"""A whole model folder, small enough that a server on it starts and answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tiny_tokenizers import byte_level_json, write_byte_level_folder

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 2, 4, 2, 16
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vocabulary() -> dict[str, int]:
    """Every token, the added ones too, with its id."""
    tokenizer = json.loads(byte_level_json())
    return tokenizer["model"]["vocab"] | {added["content"]: added["id"] for added in tokenizer["added_tokens"]}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """The `config.json` of a Llama of two layers."""
    vocab = vocabulary()
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": max(vocab.values()) + 1,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "eos_token_id": vocab["<|im_end|>"],
    } | changes


def tiny_tensors(seed: int = 7) -> dict[str, torch.Tensor]:
    """Random weights, so large that each token matters to those after it; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    vocab_size = tiny_config()["vocab_size"]

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    tensors = {
        "model.embed_tokens.weight": draw(vocab_size, HIDDEN),
        "lm_head.weight": draw(vocab_size, HIDDEN),
        "model.norm.weight": draw(HIDDEN) + 1,
    }
    for layer in range(LAYERS):
        shapes = {
            "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
            "mlp.gate_proj": (INNER, HIDDEN),
            "mlp.up_proj": (INNER, HIDDEN),
            "mlp.down_proj": (HIDDEN, INNER),
        }
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = draw(*shape)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = draw(HIDDEN) + 1
    return tensors


def write_tiny_model(folder: Path, *, tensors: dict[str, torch.Tensor] | None = None, **config_changes: Any) -> Path:
    """Write config, weights, tokenizer, chat template and generation defaults; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = tiny_config(**config_changes)
    (folder / "config.json").write_text(json.dumps(config))
    defaults = {"eos_token_id": config["eos_token_id"], "temperature": 0.8, "top_p": 0.95}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    write_byte_level_folder(folder, chat_template=CHAT_TEMPLATE)
    save_file(tiny_tensors() if tensors is None else tensors, folder / "model.safetensors")
    return folder
