"""The routes that FastAPI does not see, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from drivetrain_server.wire.chat import ChatRequest
from drivetrain_server.wire.completions import CompletionRequest
from drivetrain_server.wire.embeddings import EmbeddingRequest
from drivetrain_server.wire.messages import MessagesFields, MessagesRequest
from drivetrain_server.wire.ollama import OllamaChat, OllamaEmbed, OllamaEmbedding, OllamaGenerate, OllamaModel
from drivetrain_server.wire.responses import ResponsesRequest
from drivetrain_server.wire.tokens import Detokenize, TokenizeChat, TokenizeText

Schema = dict[str, object]
REFERENCE = "#/components/schemas/{model}"

_BODIES: dict[str, tuple[str, tuple[type[BaseModel], ...]]] = {
    "/v1/chat/completions": ("Go on with a conversation", (ChatRequest,)),
    "/v1/completions": ("Go on with text or tokens", (CompletionRequest,)),
    "/v1/embeddings": ("Embeddings of texts or tokens", (EmbeddingRequest,)),
    "/v1/responses": ("Go on with a conversation that the server keeps", (ResponsesRequest,)),
    "/v1/messages": ("Go on with a conversation, as Anthropic's clients ask for it", (MessagesRequest,)),
    "/v1/messages/count_tokens": ("Tokens of a conversation", (MessagesFields,)),
    "/api/chat": ("Go on with a conversation, as Ollama's clients ask for it", (OllamaChat,)),
    "/api/generate": ("Go on from a text, as Ollama's clients ask for it", (OllamaGenerate,)),
    "/api/embed": ("Embeddings, as Ollama's clients ask for them", (OllamaEmbed,)),
    "/api/embeddings": ("The embedding of one text", (OllamaEmbedding,)),
    "/api/show": ("What is known about a model", (OllamaModel,)),
    "/tokenize": ("Token ids of a text or conversation", (TokenizeText, TokenizeChat)),
    "/detokenize": ("Text of token ids", (Detokenize,)),
}
RAW_PATHS = tuple(_BODIES)
"""Where the routes are that FastAPI does not see."""
_STREAMED = ("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses")
_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def raw_paths() -> tuple[Schema, Schema]:
    """(paths, schemas) of the raw routes."""
    paths: Schema = {}
    schemas: Schema = {"Error": _ERROR}
    for path, (summary, models) in _BODIES.items():
        for model in models:
            schema = model.model_json_schema(ref_template=REFERENCE)
            for name, part in (schema.pop("$defs", {}) | {model.__name__: schema}).items():
                schemas[name] = _for_readers(part)
        references = [{"$ref": REFERENCE.format(model=model.__name__)} for model in models]
        paths[path] = {"post": _operation(path, summary, references)}
    return paths, schemas


def _for_readers(schema: dict[str, Any]) -> Schema:
    """The schema with its fields in the order in which people look for them, and their descriptions on one line."""
    fields: dict[str, dict[str, Any]] = schema.get("properties", {})
    required = schema.get("required", ())
    for field in fields.values():
        if "description" in field:
            field["description"] = " ".join(field["description"].split())
    if fields:
        first = sorted(fields, key=lambda name: (name != "model", name not in required))
        schema["properties"] = {name: fields[name] for name in first}
    return schema


def query_parameters(model: type[BaseModel]) -> Schema:
    """What documents the query of a route whose parameters are the fields of `model`."""
    fields = model.model_json_schema()["properties"]
    return {"parameters": [{"name": name, "in": "query", "schema": schema} for name, schema in fields.items()]}


def _operation(path: str, summary: str, bodies: list[dict[str, str]]) -> Schema:
    content: Schema = {"application/json": {"schema": {"type": "object"}}}
    if path in ("/api/chat", "/api/generate"):
        content["application/x-ndjson"] = {"schema": {"type": "string"}}
    if path in _STREAMED:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "summary": summary,
        "operationId": path.strip("/").replace("/", "_"),
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": bodies[0] if len(bodies) == 1 else {"anyOf": bodies}}},
        },
        "responses": {
            "200": {"description": "The answer", "content": content},
            "4XX": {"description": "The request is wrong; `param` names the field", "content": error},
            "503": {"description": "Not now; `Retry-After` says when", "content": error},
        },
    }
