"""`/v1/models`, as OpenAI's clients and Anthropic's read it."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import FastAPI, Request

from drivetrain.messages import EngineInfo
from drivetrain_server.errors import ANTHROPIC_HEADER, HttpError
from drivetrain_server.service import Service

Json = dict[str, object]


def add_models(app: FastAPI, service: Service) -> None:
    """Add the routes to an application."""

    def shaped(request: Request) -> Json:
        info = service.lifecycle.frontend().info
        shape = _for_anthropic if ANTHROPIC_HEADER in request.headers else _for_openai
        return shape(info, service.started)

    @app.get("/v1/models")
    async def models(request: Request) -> Json:  # pyright: ignore[reportUnusedFunction]
        """The models that are served."""
        model = shaped(request)
        if ANTHROPIC_HEADER not in request.headers:
            return {"object": "list", "data": [model]}
        # Pages begin behind `after_id` or end before `before_id`; there is nothing on either side of one model.
        beside = model["id"] in (request.query_params.get("after_id"), request.query_params.get("before_id"))
        end = None if beside else model["id"]
        return {"data": [] if beside else [model], "first_id": end, "last_id": end, "has_more": False}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str, request: Request) -> Json:  # pyright: ignore[reportUnusedFunction]
        """One model."""
        model = shaped(request)
        if name != model["id"]:
            raise HttpError(
                404,
                f'the model "{name[:100]}" is not served here; this server has "{model["id"]}"',
                param="model",
                code="model_not_found",
            )
        return model


def _for_openai(info: EngineInfo, started: int) -> Json:
    return {
        "id": info.model,
        "object": "model",
        "created": started,
        "owned_by": "drivetrain",
        "root": info.model,
        "parent": None,
        "max_model_len": info.max_model_len,
    }


def _for_anthropic(info: EngineInfo, started: int) -> Json:
    return {
        "type": "model",
        "id": info.model,
        "display_name": info.model,
        "created_at": datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": info.max_model_len,
        "max_tokens": info.max_model_len,
    }
