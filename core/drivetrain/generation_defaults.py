"""What a model's authors recommend for requests that do not say."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from typing import Any

from drivetrain.messages import EngineInfo
from drivetrain.sampling import SamplingParams, unserved

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """Sampling values of the model's `generation_config.json`, for requests that do not set them; None is not set."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def params(self) -> SamplingParams:
        """Sampling parameters with these values."""
        return SamplingParams(**self.given())

    def given(self) -> dict[str, Any]:
        """The values that are set, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def within(self, info: EngineInfo) -> GenerationDefaults:
        """Without what the engine's device does not sample by: it would refuse requests for what nobody asked."""
        dropped = unserved(self.params(), info.sampling)
        if not dropped:
            return self
        # Where nothing is drawn, the likeliest token is all that there is.
        kept = replace(self, **{name: 0.0 if name == "temperature" else None for name in dropped})
        _log.warning(
            "%s does not sample as the model's authors recommend; requests that do not say are answered with %s",
            *(info.device, kept.given() or "the plain distribution"),
        )
        return kept
