"""Embeddings: one vector a prompt, made of the hidden states that its prefill leaves behind.

A prompt that is pooled samples nothing and ends with its prefill. Each step adds up the states of the tokens that count
(of the last one, or of all), so a prompt may be computed in chunks; the sums of its chunks meet on the host.

P rows that pool, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np

from drivetrain.config_files import read_json_file
from drivetrain.errors import ModelError, RequestError, RequestFailed
from drivetrain.messages import EngineInfo, Update
from drivetrain.request import Request
from drivetrain.sampling import SamplingParams
from drivetrain.scheduling.schedule import Schedule, ScheduledRow
from drivetrain_plugins.contract.batch import Float32Array, Pooling

PoolingKind = Literal["last", "mean"]

EMBEDDING_PARAMS = SamplingParams(temperature=0.0, max_tokens=1, detokenize=False)
"""Of requests that end in an embedding, which nothing is sampled for."""

_SERVED_MODULES = ("Transformer", "Pooling", "Normalize")
_MODES: dict[str, PoolingKind] = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingFormat:
    """How a model makes embeddings.

    Attributes:
        pooling: which tokens' states count.
        dimensions: shorter lengths that its embeddings may be cut to; None is any, empty is none.
    """

    pooling: PoolingKind
    dimensions: tuple[int, ...] | None


def embedding_format(path: Path, asked: Literal["auto", "last", "mean", "none"]) -> EmbeddingFormat | None:
    """What a model folder says about embeddings, in the format of sentence-transformers; None where it says nothing.

    Args:
        path: model folder or .gguf file.
        asked: the operator's word, which wins over the folder's.

    Raises:
        ModelError: the folder asks for a pooling or a further layer that is not served.
    """
    if asked == "none":
        return None
    config = (read_json_file(path / "config.json") or {}) if path.is_dir() else {}
    declared = _declared(path) if asked == "auto" else asked
    if declared is None:
        return None
    listed: object = config.get("matryoshka_dimensions")
    if isinstance(listed, list):
        sizes = tuple(size for size in cast("list[object]", listed) if type(size) is int and size > 0)
        return EmbeddingFormat(pooling=declared, dimensions=sizes)
    trained = asked == "auto" or config.get("is_matryoshka") is True
    return EmbeddingFormat(pooling=declared, dimensions=None if trained else ())


def _declared(path: Path) -> PoolingKind | None:
    settings = path / "1_Pooling" / "config.json"
    raw = read_json_file(settings) if path.is_dir() else None
    if raw is None:
        return None
    modules = path / "modules.json"
    if modules.is_file():
        # The file is a list, which `read_json_file` does not take.
        for kind in _module_kinds(modules):
            if kind not in _SERVED_MODULES:
                raise ModelError(
                    f"{modules}: the module {kind} is not served, only {', '.join(_SERVED_MODULES)}; "
                    f'serve the model without its embeddings with pooling = "none"'
                )
    chosen = sorted(name for name, on in raw.items() if name.startswith("pooling_mode_") and on is True)
    if len(chosen) == 1 and chosen[0] in _MODES:
        return _MODES[chosen[0]]
    raise ModelError(
        f"{settings}: {' and '.join(chosen) or 'no pooling mode'} is not served, only {' or '.join(_MODES)}; "
        f'choose one of them with pooling = "last" or "mean", or serve without embeddings with "none"'
    )


def _module_kinds(path: Path) -> list[str]:
    import json

    try:
        listed: object = json.loads(path.read_bytes()[: 1 << 20])
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not JSON ({error}); download it again") from error
    items = cast("list[object]", listed) if isinstance(listed, list) else []
    kinds = [cast("dict[str, object]", item).get("type") for item in items if isinstance(item, dict)]
    return [str(kind).rpartition(".")[2] for kind in kinds]


def span_of(row: ScheduledRow) -> tuple[int, int] | None:
    """First and behind the last token of this row whose states count, as places in the row; None where none does."""
    request = row.request
    if request.pooling == "mean":
        return (0, row.num_tokens)
    if request.pooling == "last" and completes(row):
        return (row.num_tokens - 1, row.num_tokens)
    return None


def completes(row: ScheduledRow) -> bool:
    """Whether the row reaches the last token of its prompt."""
    return row.start + row.num_tokens == row.request.num_prompt


def pooling_of(rows: Sequence[ScheduledRow]) -> Pooling | None:
    """The spans of a step's rows, in row order; None where no row pools."""
    spans: list[tuple[int, int]] = []
    offset = 0
    for row in rows:
        span = span_of(row)
        if span is not None:
            spans.append((offset + span[0], offset + span[1]))
        offset += row.num_tokens
    return Pooling(spans=np.array(spans, np.int32)) if spans else None


class EmbeddingSums:
    """Sums of the states that count, of prompts whose chunks land step by step."""

    def __init__(self) -> None:
        self._sums: dict[Request, Float32Array] = {}

    def take(self, schedule: Schedule, sums_PD: Float32Array) -> None:
        """Take in the sums of a step, one for each of its rows that has a span."""
        place = 0
        for row in schedule.rows:
            if span_of(row) is None:
                continue
            sum_D, place = sums_PD[place], place + 1
            request = row.request
            if request not in schedule.dropped:
                # One that was preempted begins again.
                before_D = None if row.admitted else self._sums.get(request)
                self._sums[request] = sum_D if before_D is None else before_D + sum_D

    def end(self, request: Request) -> bytes:
        """The embedding of a prompt that has landed whole, as little-endian float32; its sum is forgotten."""
        assert request in self._sums, "an executor that pools brings a sum for each span"
        sum_D = self._sums.pop(request)
        vector_D = sum_D / np.float32(request.num_prompt) if request.pooling == "mean" else sum_D
        return vector_D.astype("<f4").tobytes()

    def forget(self, request: Request) -> None:
        """Drop what has landed of a request that ends early, if any has."""
        self._sums.pop(request, None)


def embedding_of(update: Update) -> Float32Array | None:
    """The vector that an update brings; None where it brings nothing yet.

    Raises:
        RequestFailed: the engine failed or aborted the request.
    """
    if update.finish_reason in ("error", "abort"):
        raise RequestFailed(update.error or "the engine aborted this request before it finished")
    return None if update.embedding is None else np.frombuffer(update.embedding, "<f4")


def shaped(vector_D: Float32Array, dimensions: int | None, *, normalize: bool = True) -> Float32Array:
    """A pooled vector as it is given out: cut to its first `dimensions`, then brought to length 1."""
    cut = vector_D[:dimensions]
    length = float(np.linalg.norm(cut))
    return (cut / np.float32(length)).astype(np.float32) if normalize and length > 0.0 else cut


def check_embeds(info: EngineInfo) -> None:
    """Refuse embeddings where none are served.

    Raises:
        RequestError: says how they are switched on.
    """
    if info.pooling is None:
        raise RequestError(
            f"model: {info.model} is served without embeddings; start the server with pooling = "
            f'"last" or "mean" in drivetrain.toml (--pooling), or serve a model made for embeddings',
            param="model",
        )


def check_dimensions(dimensions: int | None, size: int, allowed: Sequence[int] | None) -> None:
    """Refuse a length that the model's embeddings do not have and cannot be cut to.

    Raises:
        RequestError: names the lengths that there are.
    """
    if dimensions is None or dimensions == size:
        return
    if dimensions < size and (allowed is None or dimensions in allowed):
        return
    lengths = f"1 to {size}" if allowed is None else ", ".join(map(str, sorted({*allowed, size})))
    raise RequestError(f"dimensions: this model's embeddings have {lengths}; got {dimensions}", param="dimensions")
