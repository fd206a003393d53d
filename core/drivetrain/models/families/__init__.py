"""Families of models: which architectures are served, and what each one's configuration and weight names mean.

`decoder_spec` reads a configuration, `family_of` finds its family. A new family is one more module here and one more
line in `FAMILIES`; a new mixer or feed-forward part joins the unions of the contract's `LayerSpec`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import cast

from drivetrain.errors import UnsupportedModel
from drivetrain.models.families.bloom import BLOOM
from drivetrain.models.families.cohere import COHERE, COHERE2
from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.falcon import FALCON
from drivetrain.models.families.family import Family
from drivetrain.models.families.gemma import GEMMA, GEMMA2, GEMMA3, GEMMA3_TEXT_PART
from drivetrain.models.families.gpt2 import GPT2
from drivetrain.models.families.gpt_neox import GPT_NEOX
from drivetrain.models.families.granite import GRANITE
from drivetrain.models.families.llama import LLAMA
from drivetrain.models.families.mistral import MISTRAL
from drivetrain.models.families.mpt import MPT
from drivetrain.models.families.olmo2 import OLMO2
from drivetrain.models.families.opt import OPT
from drivetrain.models.families.phi3 import PHI3
from drivetrain.models.families.qwen import QWEN2, QWEN3
from drivetrain.models.families.stablelm import STABLELM
from drivetrain.models.families.starcoder2 import STARCODER2
from drivetrain_plugins.contract.model import DecoderSpec

__all__ = ["FAMILIES", "Family", "decoder_spec", "family_of"]

_FAMILIES = (
    BLOOM,
    COHERE,
    COHERE2,
    FALCON,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GEMMA3_TEXT_PART,
    GPT2,
    GPT_NEOX,
    GRANITE,
    LLAMA,
    MISTRAL,
    MPT,
    OLMO2,
    OPT,
    PHI3,
    QWEN2,
    QWEN3,
    STABLELM,
    STARCODER2,
)

FAMILIES: Mapping[str, Family] = {
    name: family for family in _FAMILIES for name in (*family.architectures, *family.model_types)
}
"""Every family under each of its architecture names and model types."""


def family_of(config: Mapping[str, object]) -> Family:
    """The family of a configuration, by `architectures`, else by `model_type`.

    Raises:
        UnsupportedModel: no such family; lists those that there are.
    """
    name = _architecture(config)
    # Models made for embeddings are often stored without their output matrix, under the name of the bare decoder.
    family = FAMILIES.get(name) or FAMILIES.get(f"{name.removesuffix('Model')}ForCausalLM")
    if family is not None:
        return family
    known = sorted(architecture for family in _FAMILIES for architecture in family.architectures)
    close = difflib.get_close_matches(name, [*known, *FAMILIES], n=1, cutoff=0.8)
    hint = f" The closest is {close[0]}." if close else ""
    raise UnsupportedModel(f"architecture {name!r} is not served.{hint} Served: {', '.join(known)}")


def decoder_spec(config: Mapping[str, object]) -> DecoderSpec:
    """The decoder that a Hugging Face configuration describes, of either generation of key names.

    Raises:
        UnsupportedModel: an unknown architecture, a missing key, or an option that is not served.
    """
    family = family_of(config)
    values = config
    if family.text_section is not None:
        section = config.get(family.text_section)
        if not isinstance(section, Mapping):
            raise UnsupportedModel(f"{_architecture(config)}: the model's configuration lacks {family.text_section}")
        values = cast(Mapping[str, object], section)
    for options in (config, values):
        _refuse_quantized(options, _architecture(config))
    given = {key: value for key, value in values.items() if value is not None}
    reader = ModelConfig({**family.defaults, **given}, _architecture(config))
    reader.require("is_encoder_decoder", False)
    reader.require("is_causal", True)
    reader.require("use_bidirectional_attention", False)
    return family.spec(reader)


def _refuse_quantized(config: Mapping[str, object], architecture: str) -> None:
    quantization = config.get("quantization_config")
    if quantization is not None:
        reader = ModelConfig({"quantization_config": quantization}, architecture)
        options = reader.section("quantization_config")
        method = options.raw("quant_method") if options is not None else None
        raise UnsupportedModel(
            f"{architecture}: quantization_config.quant_method = {method!r} in the configuration is not served; "
            f"use an unquantized checkpoint or a .gguf file"
        )


def _architecture(config: Mapping[str, object]) -> str:
    names = config.get("architectures")
    if isinstance(names, list | tuple) and names:
        return str(cast(list[object], names)[0])
    model_type = config.get("model_type")
    if isinstance(model_type, str):
        return model_type
    raise UnsupportedModel("the model's configuration names neither architectures nor model_type; is it a model's?")
