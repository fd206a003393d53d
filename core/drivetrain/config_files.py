"""A model's configuration files: `config.json`, `generation_config.json`, or the metadata of a .gguf file.

Files are data here. Nothing in them is imported or run, whatever `auto_map` says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from drivetrain.errors import ModelError, ModelNotFound

MAX_CONFIG_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationConfig:
    """What the model's authors say about sampling. None where they say nothing."""

    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None
    do_sample: bool | None = None
    suppress_tokens: tuple[int, ...] = field(default=())


def load_model_config(path: Path) -> dict[str, Any]:
    """The model's configuration, under the names that checkpoints on hubs use.

    Newer writers' `rope_parameters` and `dtype` also appear as `rope_theta`, `rope_scaling`, `rope_local_base_freq` and
    `torch_dtype`, so that readers need one form only.

    Args:
        path: a model folder, or a .gguf file.

    Raises:
        ModelNotFound: no such path, or a folder without config.json.
        ModelError: a file that cannot be read.
    """
    if path.suffix == ".gguf":
        from drivetrain.weights.gguf_config import gguf_model_config
        from drivetrain.weights.gguf_header import read_gguf_header

        return gguf_model_config(read_gguf_header(path))
    config = read_json_file(path / "config.json")
    if config is None:
        what = "no config.json in this folder" if path.is_dir() else "no such folder"
        raise ModelNotFound(f"{path}: {what}; expected a Hugging Face model folder or a .gguf file")
    return normalise_config(config)


def normalise_config(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a `config.json` with the newer writers' fields under the older names too."""
    result = dict(config)
    if "dtype" in result:
        result.setdefault("torch_dtype", result["dtype"])
    if "num_local_experts" in result:
        result.setdefault("num_experts", result["num_local_experts"])
    parameters = result.get("rope_parameters")
    if isinstance(parameters, dict):
        _add_older_rope(result, cast("dict[str, Any]", parameters))
    for key in ("text_config",):
        if isinstance(result.get(key), dict):
            result[key] = normalise_config(result[key])
    return result


def _add_older_rope(config: dict[str, Any], parameters: dict[str, Any]) -> None:
    # Per layer type: {"full_attention": {...}, "sliding_attention": {...}}.
    local = parameters.get("sliding_attention")
    if isinstance(local, dict) and "rope_theta" in local:
        config.setdefault("rope_local_base_freq", cast("dict[str, Any]", local)["rope_theta"])
    full = parameters.get("full_attention", parameters)
    if not isinstance(full, dict):
        return
    full = cast("dict[str, Any]", full)
    for key in ("rope_theta", "partial_rotary_factor"):
        if key in full:
            config.setdefault(key, full[key])
    if full.get("rope_type", full.get("type", "default")) != "default":
        scaling = {key: value for key, value in full.items() if key not in ("rope_theta", "partial_rotary_factor")}
        if config.get("rope_scaling") is None:
            config["rope_scaling"] = scaling


def load_generation_config(path: Path) -> GenerationConfig:
    """End ids and sampling defaults of a model.

    From `generation_config.json`, with end ids of `config.json` where that names none. For a .gguf file the end ids
    come from its tokenizer metadata, the rest from `NAME.generation_config.json` beside NAME.gguf if there is one. A
    model that says nothing gives an empty configuration.

    Raises:
        ModelError: a file that cannot be read, or a value of the wrong type.
    """
    if path.suffix == ".gguf":
        from drivetrain.tokenizer.gguf import gguf_end_ids
        from drivetrain.weights.gguf_header import read_gguf_header

        metadata = read_gguf_header(path).metadata
        bos = metadata.get("tokenizer.ggml.bos_token_id")
        beside = generation_config_beside(path)
        raw = read_json_file(beside) or {}
        raw |= {"eos_token_id": list(gguf_end_ids(metadata)), "bos_token_id": bos if isinstance(bos, int) else None}
        return _generation_config(beside, raw)
    raw = read_json_file(path / "generation_config.json") or {}
    if raw.get("eos_token_id") is None:
        config = read_json_file(path / "config.json") or {}
        text_config: Any = config.get("text_config") or {}
        raw = {**raw, "eos_token_id": config.get("eos_token_id", text_config.get("eos_token_id"))}
    return _generation_config(path / "generation_config.json", raw)


def generation_config_beside(gguf: Path) -> Path:
    """Where sampling defaults of a .gguf file are kept."""
    return gguf.with_suffix(".generation_config.json")


def _generation_config(where: Path, raw: dict[str, Any]) -> GenerationConfig:
    return GenerationConfig(
        eos_token_ids=_ids(where, "eos_token_id", raw.get("eos_token_id")),
        bos_token_id=next(iter(_ids(where, "bos_token_id", raw.get("bos_token_id"))), None),
        pad_token_id=next(iter(_ids(where, "pad_token_id", raw.get("pad_token_id"))), None),
        temperature=_number(where, raw, "temperature"),
        top_p=_number(where, raw, "top_p"),
        top_k=_whole(where, raw, "top_k"),
        min_p=_number(where, raw, "min_p"),
        repetition_penalty=_number(where, raw, "repetition_penalty"),
        max_new_tokens=_whole(where, raw, "max_new_tokens"),
        do_sample=raw.get("do_sample") if isinstance(raw.get("do_sample"), bool) else None,
        suppress_tokens=_ids(where, "suppress_tokens", raw.get("suppress_tokens")),
    )


def _ids(where: Path, key: str, value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    items = cast("list[object]", value) if isinstance(value, list) else [value]
    if not all(type(item) is int and 0 <= item < 2**31 for item in items):
        raise ModelError(f"{where}: {key} is {str(items)[:80]}, expected a token id or a list of them")
    return tuple(dict.fromkeys(cast("list[int]", items)))


def _number(where: Path, raw: dict[str, Any], key: str) -> float | None:
    value: object = raw.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelError(f"{where}: {key} is {str(value)[:80]}, expected a number")
    return float(value)


def _whole(where: Path, raw: dict[str, Any], key: str) -> int | None:
    value = _number(where, raw, key)
    if value is not None and not value.is_integer():
        raise ModelError(f"{where}: {key} is {value}, expected a whole number")
    return None if value is None else int(value)


def read_json_file(path: Path, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any] | None:
    """A JSON object from a file, or None where there is no such file.

    Raises:
        ModelError: larger than `max_bytes`, not JSON, or no object.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error}); check its permissions") from error
    if len(raw) > max_bytes:
        raise ModelError(f"{path}: larger than the {max_bytes} bytes that such a file may have")
    try:
        value: Any = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return cast("dict[str, Any]", value)
