"""One LLM serving engine for any accelerator.

from drivetrain import LLM, SamplingParams

with LLM("smollm2-135m-instruct") as llm:
    print(llm.generate("The capital of France is", SamplingParams(max_tokens=8))[0].text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drivetrain.version import __version__

if TYPE_CHECKING:
    from drivetrain.llm import LLM
    from drivetrain.outputs import Completion, EmbeddingOutput, RequestOutput
    from drivetrain.sampling import SamplingParams

__all__ = ["LLM", "Completion", "EmbeddingOutput", "RequestOutput", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "drivetrain.llm",
    "Completion": "drivetrain.outputs",
    "EmbeddingOutput": "drivetrain.outputs",
    "RequestOutput": "drivetrain.outputs",
    "SamplingParams": "drivetrain.sampling",
}


def __getattr__(name: str) -> object:
    """Import what is asked for, so that `import drivetrain` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'drivetrain' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
