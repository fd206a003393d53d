"""What the engine needs to know. `LLM(...)` takes these fields by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from drivetrain.config.sections import normalize, placed
from drivetrain.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Model, limits, scheduling and parallelism. None means: measured or read from the model at start.

    Raises:
        ConfigError: a value is of the wrong type, out of range, or contradicts another.
    """

    model: str = field(default="", metadata=placed(""))
    """Folder, GGUF file, or name of a model in the local store (`drivetrain ls`, `drivetrain pull`)."""

    served_model_name: str | None = field(default=None, metadata=placed(""))
    """The name that clients use in the `model` field; by default the model's own name."""

    backend: str = field(default="auto", metadata=placed(""))
    """Device backend by name (`drivetrain backends` lists them); `auto` takes the ready one with the highest
    priority."""

    blocked_backends: tuple[str, ...] = field(default=(), metadata=placed(""))
    """Backends, or packages of backends, that are never loaded."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = field(default="auto", metadata=placed(""))
    """Type of weights and activations; `auto` is the checkpoint's own where the device does it well, else the
    backend's choice."""

    kv_dtype: Literal["auto", "bfloat16", "float16", "float32", "fp8_e4m3", "fp8_e5m2"] = field(
        default="auto", metadata=placed("")
    )
    """Type that keys and values are stored in; `auto` is that of the activations. An fp8 type halves the memory of a
    token and the time to read it, and costs some accuracy."""

    quantization: Literal["auto", "none"] = field(default="auto", metadata=placed(""))
    """`auto` keeps a quantized checkpoint quantized where the backend has kernels for it; `none` expands its weights
    to `dtype` at load."""

    load_format: Literal["auto", "safetensors", "gguf", "dummy"] = field(default="auto", metadata=placed(""))
    """How weights are read; `auto` looks at the files, `dummy` makes random weights for benchmarks."""

    tokenizer: str | None = field(default=None, metadata=placed(""))
    """Folder, `tokenizer.json` or .gguf file whose tokenizer is used instead of the model's own."""

    chat_template: str | None = field(default=None, metadata=placed(""))
    """Jinja file to use instead of the model's own chat template."""

    tool_parser: str = field(default="auto", metadata=placed(""))
    """Family in whose style the model calls tools (docs/tools.md lists them), `none` to take calls as text; `auto`
    finds it by the chat template."""

    reasoning_parser: str = field(default="auto", metadata=placed(""))
    """Family in whose style the model marks its reasoning (docs/tools.md lists them), `none` to take reasoning as
    text; `auto` finds it by the chat template."""

    pooling: Literal["auto", "last", "mean", "none"] = field(default="auto", metadata=placed(""))
    """Which tokens' hidden states make an embedding: `auto` is what the model folder says in `1_Pooling/config.json`,
    so that models made for embeddings serve them; `last` or `mean` let any other model serve them too; `none` serves
    no embeddings."""

    seed: int = field(default=0, metadata=placed("", least=0, most=2**63 - 1))
    """Seed of requests that bring none, and of dummy weights."""

    max_model_len: int | None = field(default=None, metadata=placed("limits", least=1))
    """Longest prompt plus answer, in tokens; by default the model's own context, lowered to what KV memory holds."""

    max_num_seqs: int = field(default=256, metadata=placed("limits", least=1, most=65536))
    """Sequences that run at the same time; more wait."""

    max_step_tokens: int | None = field(default=None, metadata=placed("limits", least=1))
    """Tokens that one step computes at most, prompts and answers together. More favours throughput, less favours
    steady inter-token times; by default the backend's choice."""

    max_waiting: int = field(default=1024, metadata=placed("limits", least=1))
    """Requests that may wait; one more is refused with 503 and a `Retry-After`."""

    kv_memory: int | float | None = field(default=None, metadata=placed("limits"))
    """Memory for the KV cache: a size, or the share of the device's memory that weights, cache and all else may take
    together; by default the backend measures."""

    num_pages: int | None = field(default=None, metadata=placed("limits", least=2))
    """Exact number of KV pages instead of `kv_memory`, refused where they do not fit; for tests and reproducible
    benchmarks."""

    page_size: int | None = field(default=None, metadata=placed("limits", least=1, most=1024))
    """Tokens a KV page holds; by default the backend's preferred size."""

    prefix_cache: bool = field(default=True, metadata=placed("scheduler"))
    """Keep the KV pages of finished requests and reuse them for prompts that begin the same."""

    chunked_prefill: bool = field(default=True, metadata=placed("scheduler"))
    """Split long prompts over steps, so that running answers never stall."""

    overlap: Literal["auto", "on", "off"] = field(default="auto", metadata=placed("scheduler"))
    """Schedule the next step while the device runs this one; `auto` is on where the device works asynchronously."""

    tensor_parallel: int = field(default=1, metadata=placed("parallel", least=1))
    """Devices that split each layer between them."""

    pipeline_parallel: int = field(default=1, metadata=placed("parallel", least=1))
    """Groups of devices that hold consecutive layers."""

    data_parallel: int = field(default=1, metadata=placed("parallel", least=1))
    """Whole replicas of the engine behind one server."""

    backend_options: Mapping[str, object] = field(default_factory=dict[str, object], metadata=placed(""))
    """Options a backend, one table a name (`[backend_options.cpu]`); checked by that backend, inert for others. A name
    that no backend here has is warned of at the start."""

    def __post_init__(self) -> None:
        normalize(self)
        for name, table in self.backend_options.items():
            if not isinstance(table, dict):
                raise ConfigError(
                    f"backend_options.{name}: got {table!r}, expected a table of that backend's options; "
                    f"write them under [backend_options.NAME]"
                )
        if not {self.tool_parser, self.reasoning_parser} <= {"auto", "none"}:
            from drivetrain.dialects.choose import check_parsers

            check_parsers(self.tool_parser, self.reasoning_parser)
        for name in ("tensor_parallel", "pipeline_parallel", "data_parallel"):
            if (degree := getattr(self, name)) != 1:
                raise ConfigError(
                    f"parallel.{name}: got {degree}, expected 1: this version runs one device a server; "
                    f"start one server a device and balance between them"
                )
        if self.num_pages is not None and self.kv_memory is not None:
            raise ConfigError(
                f"limits.num_pages: got {self.num_pages} beside limits.kv_memory, which says the same; remove one"
            )
        if not self.chunked_prefill and None not in (self.max_step_tokens, self.max_model_len):
            budget, longest = cast("int", self.max_step_tokens), cast("int", self.max_model_len)
            if budget < longest:
                raise ConfigError(
                    f"limits.max_step_tokens: got {budget}, expected at least limits.max_model_len ({longest}) "
                    f"while scheduler.chunked_prefill is false; raise it or allow chunks"
                )

    def options_of(self, backend: str) -> Mapping[str, object]:
        """The `[backend_options.NAME]` table of one backend, empty where the file has none."""
        return cast("Mapping[str, object]", self.backend_options.get(backend, {}))
