"""From a configuration to an engine that is ready: choose the device, read the model, load, size, connect."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drivetrain.batch import BatchBuilder
from drivetrain.config import EngineConfig
from drivetrain.config_files import load_generation_config, load_model_config
from drivetrain.devices import begun_early, choose, open_device
from drivetrain.engine import Engine
from drivetrain.errors import ConfigError, OutOfMemory, Unsupported, UnsupportedModel
from drivetrain.grammar.compiler import GrammarCompiler
from drivetrain.memory import ITEM_BYTES, check_memory, exact_pages, named_setting, num_parameters
from drivetrain.messages import EngineInfo
from drivetrain.model_store import resolve_model, served_name
from drivetrain.phases import OnPhase, PhaseClock
from drivetrain.pooling import EmbeddingFormat, embedding_format
from drivetrain.scheduler import Scheduler, SchedulerLimits
from drivetrain.weights.read_ahead import read_ahead
from drivetrain_plugins.contract.capabilities import Capabilities, Dtype
from drivetrain_plugins.contract.memory import MemoryLimits, MemoryPlan
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_plugins.spec import BackendSpec

if TYPE_CHECKING:  # what imports torch is imported once the backend's environment is set
    import torch
    from llguidance import LLTokenizer

    from drivetrain_plugins.contract.backend import Device
    from drivetrain_plugins.contract.executor import Executor, ExecutorLimits, Weights

_SIXTEEN_BITS = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """A model's files, read but for the weights."""

    path: Path
    name: str
    config: dict[str, Any]
    spec: DecoderSpec
    end_ids: frozenset[int]
    embedding: EmbeddingFormat | None = None


def assemble(config: EngineConfig, progress: OnPhase | None = None) -> Engine:
    """Build the engine that a configuration describes. Takes as long as loading the model takes.

    Args:
        progress: told about each phase.

    Raises:
        DrivetrainError: a setting, the model or the device stands in the way; the message says what to do.
    """
    clock = PhaseClock(progress)
    warnings: list[str] = []
    with clock.phase("read model"):
        model = open_model(config)
    if config.load_format != "dummy":
        read_ahead(model.path)
    with clock.phase("find device"):
        backend = choose(config, warnings.append)
    with begun_early(config, backend):
        return _assemble_on(backend, config, model, clock, tuple(warnings))


def _assemble_on(
    backend: BackendSpec, config: EngineConfig, model: OpenedModel, clock: PhaseClock, warnings: tuple[str, ...]
) -> Engine:
    with clock.phase("open device"):
        device = open_device(config, backend)
    limits = executor_limits(config, model, device.capabilities)
    gaps = device.unsupported(model.spec, limits)
    if gaps:
        raise Unsupported(f"{backend.name} cannot serve {model.name}: " + "; ".join(gaps))
    own = device.executor()
    executor = own or _model_runner(device)
    if model.embedding is not None and not executor.pools:
        raise Unsupported(f'{backend.name} serves no embeddings; serve {model.name} without, with pooling = "none"')
    spec, weights = open_model_weights(config, model, limits.dtype, None if own is not None else device.torch_device)
    if config.num_pages is not None and own is None:
        limits = exact_pages(limits, spec, config.num_pages)
    check_memory(config, spec, limits, device.capabilities)
    try:
        plan = executor.load(spec, weights, limits, clock.progress)
    except OutOfMemory as error:
        raise named_setting(config, error) from error
    if config.num_pages not in (None, plan.num_pages):
        raise OutOfMemory(
            f"limits.num_pages: got {config.num_pages}, but {backend.name} has {plan.num_pages}; lower it"
        )
    return connect(
        config,
        model,
        executor,
        limits,
        plan,
        backend=backend.name,
        capabilities=device.capabilities,
        weight_bytes=weights.total_bytes,
        warnings=warnings,
        grammars=GrammarCompiler(lambda: _open_vocabulary(config, model)),
    )


def _open_vocabulary(config: EngineConfig, model: OpenedModel) -> LLTokenizer:
    """What grammars are compiled for, read when the first request has one."""
    from drivetrain.grammar.vocabulary import open_vocabulary
    from drivetrain.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_path(config, model.path))
    return open_vocabulary(tokenizer, model.spec.vocab_size, model.end_ids)


def open_model(config: EngineConfig) -> OpenedModel:
    """Read a model's configuration and settle what it is.

    Raises:
        ModelError: not found, not readable, or not an architecture that is served.
    """
    from drivetrain.models.families import decoder_spec

    if not config.model:
        raise ConfigError("model: got nothing, expected a folder, a GGUF file or a name that `drivetrain ls` shows")
    path = resolve_model(config.model)
    model_config = load_model_config(path)
    try:
        spec = decoder_spec(model_config)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{path}: {error}") from error
    return OpenedModel(
        path=path,
        name=config.served_model_name or served_name(config.model),
        config=model_config,
        spec=spec,
        end_ids=frozenset(load_generation_config(path).eos_token_ids),
        embedding=embedding_format(path, config.pooling),
    )


def tokenizer_path(config: EngineConfig, model: Path) -> Path:
    """Where the model's tokenizer is read from."""
    return model if config.tokenizer is None else Path(config.tokenizer).expanduser()


def _model_runner(device: Device) -> Executor:
    from drivetrain.runner import ModelRunner

    return ModelRunner(device)


def open_model_weights(
    config: EngineConfig, model: OpenedModel, dtype: Dtype, device: torch.device | None = None
) -> tuple[DecoderSpec, Weights]:
    """The checkpoint under canonical names, or random weights in its place.

    Args:
        device: where random weights are made; None is the host.

    Returns:
        The spec, tied if the checkpoint has no output matrix of its own, and the weights.

    Raises:
        ModelError: no weights there, or files that are corrupt.
        ConfigError: they are not in the format that was asked for.
    """
    from drivetrain.models.checkpoint import CheckpointWeights, RandomWeights
    from drivetrain.weights.source import open_weights

    if config.load_format == "dummy":
        return model.spec, RandomWeights(model.spec, dtype=dtype, seed=config.seed, device=device)
    found = "gguf" if model.path.suffix == ".gguf" else "safetensors"
    if config.load_format not in ("auto", found):
        raise ConfigError(f"load_format: got {config.load_format}, but {model.path} holds {found}; leave it out")
    weights = CheckpointWeights(open_weights(model.path), model.config, model.spec)
    return weights.spec, weights


def executor_limits(config: EngineConfig, model: OpenedModel, capabilities: Capabilities) -> ExecutorLimits:
    """What the configuration, the model and the device leave of every size and type: the plan that will be run.

    Raises:
        ConfigError: a limit is beyond what the model was made for.
    """
    from drivetrain_plugins.contract.executor import ExecutorLimits

    dtype = _dtype(config, model, capabilities)
    max_model_len = model.spec.max_positions
    if config.max_model_len is not None:
        if config.max_model_len > max_model_len:
            raise ConfigError(
                f"limits.max_model_len: got {config.max_model_len}, but {model.name} was made for "
                f"{max_model_len} tokens; lower it"
            )
        max_model_len = config.max_model_len
    page_size = config.page_size or capabilities.page_sizes[0]
    columns = -(-max_model_len // page_size)
    step_tokens = config.max_step_tokens or max(capabilities.step_tokens, config.max_num_seqs)
    if config.max_step_tokens is None and not config.chunked_prefill:
        step_tokens = max(step_tokens, max_model_len)
    max_pages = columns * config.max_num_seqs + 1
    if config.num_pages is not None:
        max_pages = config.num_pages
    return ExecutorLimits(
        dtype=dtype,
        kv_dtype=dtype if config.kv_dtype == "auto" else config.kv_dtype,
        max_num_rows=config.max_num_seqs,
        max_step_tokens=step_tokens,
        max_model_len=max_model_len,
        page_size=page_size,
        memory=_memory(config, max_pages),
    )


def _memory(config: EngineConfig, max_pages: int) -> MemoryLimits:
    if isinstance(config.kv_memory, float):
        return MemoryLimits(fraction=config.kv_memory, max_pages=max_pages)
    return MemoryLimits(kv_bytes=config.kv_memory, max_pages=max_pages)


def _dtype(config: EngineConfig, model: OpenedModel, capabilities: Capabilities) -> Dtype:
    if config.dtype != "auto":
        return config.dtype
    preferred = capabilities.dtypes[0]
    stored = model.config.get("torch_dtype")
    if stored in capabilities.dtypes and stored in _SIXTEEN_BITS and preferred in _SIXTEEN_BITS:
        return stored
    return preferred


def connect(
    config: EngineConfig,
    model: OpenedModel,
    executor: Executor,
    limits: ExecutorLimits,
    plan: MemoryPlan,
    *,
    backend: str,
    capabilities: Capabilities,
    weight_bytes: int,
    warnings: tuple[str, ...] = (),
    grammars: GrammarCompiler | None = None,
) -> Engine:
    """Scheduler, batch builder and step loop around a loaded executor.

    Raises:
        OutOfMemory: the pages hold not even one short request.
    """
    policy = executor.shape_policy
    usable = (plan.num_pages - 1) * limits.page_size
    max_model_len = min(limits.max_model_len, usable)
    if max_model_len < 2:
        raise OutOfMemory(
            f"{plan.num_pages} KV pages of {limits.page_size} tokens hold no request; give it more memory"
        )
    limits = replace(limits, max_model_len=max_model_len)
    overlap = capabilities.async_execution if config.overlap == "auto" else config.overlap == "on"
    return Engine(
        executor=executor,
        scheduler=Scheduler(
            SchedulerLimits(
                max_num_rows=limits.max_num_rows,
                max_step_tokens=limits.max_step_tokens,
                max_model_len=max_model_len,
                page_size=limits.page_size,
                num_pages=plan.num_pages,
                max_waiting=config.max_waiting,
                mixed_steps=policy.mixed_steps,
                max_prefills_per_step=policy.max_prefills_per_step,
                max_total_pages=policy.max_total_pages,
                chunked_prefill=config.chunked_prefill,
                prefix_cache=config.prefix_cache,
                overlap=int(overlap),
            )
        ),
        builder=BatchBuilder(
            policy=policy,
            dummy_slot=limits.max_num_rows,
            page_size=limits.page_size,
            shared_prefixes="cascade" in capabilities.attention,
        ),
        info=_engine_info(
            model,
            limits,
            plan,
            backend=backend,
            capabilities=capabilities,
            weight_bytes=weight_bytes,
            warnings=warnings,
        ),
        end_ids=model.end_ids,
        overlap=overlap,
        sampling=capabilities.sampling,
        grammars=grammars,
        seed=config.seed,
    )


def _engine_info(
    model: OpenedModel,
    limits: ExecutorLimits,
    plan: MemoryPlan,
    *,
    backend: str,
    capabilities: Capabilities,
    weight_bytes: int,
    warnings: tuple[str, ...],
) -> EngineInfo:
    embedding, spec = model.embedding, model.spec
    parameters = num_parameters(spec)
    return EngineInfo(
        model=model.name,
        architecture=spec.architecture,
        backend=backend,
        device=capabilities.device_name,
        dtype=limits.dtype,
        vocab_size=spec.vocab_size,
        max_model_len=limits.max_model_len,
        num_pages=plan.num_pages,
        page_size=limits.page_size,
        max_num_rows=limits.max_num_rows,
        max_step_tokens=limits.max_step_tokens,
        kv_bytes=plan.kv_bytes,
        weight_bytes=weight_bytes,
        pooling=None if embedding is None else embedding.pooling,
        embedding_size=0 if embedding is None else spec.embedding.size or spec.hidden_size,
        embedding_dimensions=() if embedding is None else embedding.dimensions,
        num_parameters=parameters,
        loaded_bytes=parameters * ITEM_BYTES[limits.dtype],
        sampling=tuple(sorted(capabilities.sampling)),
        warnings=warnings,
        memory=plan.lines,
    )
