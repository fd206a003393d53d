"""What a run is asked to do, and where a part writes what it found."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "tests/data/configs"
TINY = "tiny"
"""Stands for a model so small that every part runs on a CPU in seconds."""
TINY_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
HTTP_MODEL = "Llama-3.1-8B"
"""The model of the parts that go through the server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a run is asked to do.

    Attributes:
        work: folder for model folders, caches and logs; may be deleted afterwards.
        models: names of configurations in `tests/data/configs`, or `tiny`.
        workloads: names of `workloads.SHAPES`; empty leaves out the timing and keeps the profile.
        repetitions: of each workload; the last counts.
        profile: workloads whose steady decoding is profiled.
        engine: further fields of `EngineConfig`, for offline use and the server alike.
        golden_model: the quick-start model's .gguf file; empty compares random models only.
        rates: arrivals a second of the latency part, each held for `rate_s`.
        kernel_tests: folder of the kernel tests.
        kernel_select: a pytest `-k` expression that narrows them.
        sanitizer_tools: tools of compute-sanitizer; `sanitizer_tests` tests of each file run under each.
    """

    backend: str
    work: str
    models: tuple[str, ...]
    workloads: tuple[str, ...]
    repetitions: int = 2
    profile: tuple[str, ...] = ()
    engine: dict[str, Any] = field(default_factory=dict[str, Any])
    golden_model: str = ""
    rates: tuple[float, ...] = (1, 4, 16, 64)
    rate_s: float = 15.0
    soak_s: float = 120.0
    kernel_tests: str = "tests/gpu_kernels"
    kernel_select: str = ""
    sanitizer_tools: tuple[str, ...] = ("memcheck",)
    sanitizer_tests: int = 4

    @property
    def tiny(self) -> bool:
        """Whether this only tries the code: lengths are cut so that a CPU is enough."""
        return TINY in self.models

    @property
    def http_model(self) -> str:
        """The model of the parts that go through the server."""
        return HTTP_MODEL if HTTP_MODEL in self.models else self.models[0]

    def folder(self, name: str) -> Path:
        """A folder of this name under `work`, made if missing."""
        path = Path(self.work) / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def to_json(self) -> str:
        """As `from_json` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """What `to_json` wrote."""
        read: dict[str, Any] = json.loads(text)
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in read.items()}
        return cls(**values)


def model_config(name: str) -> dict[str, Any]:
    """The Hugging Face configuration of a model by name."""
    return TINY_CONFIG if name == TINY else json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


class Record:
    """What one part found, written to its file at once, so that a part that is stopped leaves what it had."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.found: dict[str, Any] = {}
        self.failures: list[str] = []

    def put(self, **values: Any) -> None:
        """Add or replace values."""
        self.found |= values
        self._write()

    def append(self, name: str, value: Any) -> None:
        """Add to a list of values."""
        self.found.setdefault(name, []).append(value)
        self._write()

    def fail(self, reason: str) -> None:
        """Something is wrong; the part goes on and counts as failed."""
        print(f"FAILED {reason}", flush=True)
        self.failures.append(reason)
        self._write()

    def _write(self) -> None:
        self._path.write_text(json.dumps({**self.found, "failures": self.failures}), encoding="utf-8")
