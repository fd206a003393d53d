"""What a family is to the rest of core: names that it answers to, a reader of its configuration, and weight names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from drivetrain.models.families.config import ModelConfig
from drivetrain.models.families.names import WeightNames
from drivetrain_plugins.contract.model import DecoderSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of checkpoints.

    Attributes:
        architectures: values of `architectures` in a configuration.
        model_types: values of `model_type`, for configurations without `architectures`.
        spec: the decoder that a configuration describes. Raises UnsupportedModel for options that are not served.
        names: where the weights stand.
        defaults: values of keys that some files leave out.
        text_section: key of the nested table that describes the decoder, in checkpoints with further parts.
    """

    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    spec: Callable[[ModelConfig], DecoderSpec]
    names: WeightNames
    defaults: Mapping[str, object] = field(default_factory=dict[str, object])
    text_section: str | None = None
