"""Ollama's native routes that tell about the model that is served."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import orjson
from fastapi import FastAPI

from drivetrain.frontend import Frontend
from drivetrain.messages import EngineInfo, EngineStats
from drivetrain.version import __version__
from drivetrain_server.body import read_json
from drivetrain_server.exchange import Exchange
from drivetrain_server.routes.ollama import ollama_name
from drivetrain_server.service import Service, ignored_fields
from drivetrain_server.wire.ollama import OllamaModel
from drivetrain_server.wire.validation import parse

Json = dict[str, object]
NEVER = "9999-12-31T23:59:59Z"
"""When the model is let go: not before the server ends."""


def add_ollama_models(app: FastAPI, service: Service) -> None:
    """Add the routes that need no body."""

    @app.get("/api/version")
    async def version() -> Json:  # pyright: ignore[reportUnusedFunction]
        """Version of the server."""
        return {"version": __version__}

    @app.get("/api/tags")
    async def tags() -> Json:  # pyright: ignore[reportUnusedFunction]
        """The models that are served, as Ollama lists them."""
        info = service.lifecycle.frontend().info
        return {"models": [_entry(info) | {"modified_at": _started(service)}]}

    @app.get("/api/ps")
    async def running() -> Json:  # pyright: ignore[reportUnusedFunction]
        """The models that are in memory, as Ollama lists them."""
        info = service.lifecycle.frontend().info
        held = info.loaded_bytes + _held_bytes(info, await service.stats())
        memory = {"size": held, "size_vram": held, "context_length": info.max_model_len}
        return {"models": [_entry(info) | memory | {"expires_at": NEVER}]}


class OllamaShowRoute:
    """What is known about a model."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def __call__(self, exchange: Exchange) -> None:
        """Answer with template, parameters, sizes and capabilities."""
        service = self.service
        frontend = service.lifecycle.frontend()
        body = await read_json(exchange, service.config.max_body_bytes)
        if "name" in body and "model" not in body:
            body["model"] = body.pop("name")
        fields = parse(OllamaModel, body)
        info = frontend.info
        service.check_model(ollama_name(fields.model, info), info)
        exchange.extra_headers += ignored_fields([name for name in fields.unknown if name != "verbose"])
        await exchange.answer(orjson.dumps(self._about(frontend, info)))

    def _about(self, frontend: Frontend, info: EngineInfo) -> Json:
        defaults = self.service.sampling_defaults(frontend)
        family = _family(info)
        return {
            "modelfile": f"# served by Drivetrain {__version__}\nFROM {info.model}\n",
            "parameters": "\n".join(f"{name:<30} {value}" for name, value in defaults.items()),
            "template": "" if frontend.chat_template is None else frontend.chat_template.sources.get("default", ""),
            "details": _details(info),
            "model_info": {
                "general.architecture": family,
                "general.parameter_count": info.num_parameters,
                f"{family}.context_length": info.max_model_len,
                f"{family}.vocab_size": info.vocab_size,
                f"{family}.embedding_length": info.embedding_size or None,
            },
            "capabilities": _capabilities(frontend),
            "modified_at": _started(self.service),
        }


def _capabilities(frontend: Frontend) -> list[str]:
    able = {
        "completion": True,
        "embedding": frontend.info.pooling is not None,
        "tools": frontend.chat_template is not None and frontend.dialect.tools is not None,
        "thinking": frontend.dialect.reasoning is not None,
    }
    return [name for name, is_able in able.items() if is_able]


def _entry(info: EngineInfo) -> Json:
    digest = hashlib.sha256("\0".join((info.model, info.architecture, info.dtype)).encode()).hexdigest()
    return {
        "name": info.model,
        "model": info.model,
        "size": info.weight_bytes,
        "digest": digest,
        "details": _details(info),
    }


def _details(info: EngineInfo) -> Json:
    family = _family(info)
    return {
        "parent_model": "",
        "format": "drivetrain",
        "family": family,
        "families": [family],
        "parameter_size": _in_words(info.num_parameters),
        "quantization_level": info.dtype,
    }


def _family(info: EngineInfo) -> str:
    """The architecture as Ollama and GGUF files write it: `llama` for LlamaForCausalLM."""
    return info.architecture.partition("For")[0].lower()


def _in_words(number: int) -> str:
    """A number of parameters as Ollama writes it: `134.52M`, `8.0B`."""
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.2f}M"


def _held_bytes(info: EngineInfo, stats: EngineStats | None) -> int:
    """Bytes of the pages that hold something; the others may not have been touched yet."""
    if stats is None or stats.pages_total == 0:
        return 0
    return info.kv_bytes * (stats.pages_used + stats.pages_cached) // stats.pages_total


def _started(service: Service) -> str:
    return datetime.fromtimestamp(service.started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
