"""The body of `/v1/embeddings`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from drivetrain_server.wire.completions import PROMPT_SCHEMA, prompts
from drivetrain_server.wire.sampling import INT32_MAX
from drivetrain_server.wire.validation import WireModel


class EmbeddingRequest(WireModel):
    """Texts or tokens whose embeddings are wanted."""

    model: str = Field(description="A name that `/v1/models` lists.")
    input: Annotated[
        list[str] | list[list[int]], BeforeValidator(prompts), WithJsonSchema(PROMPT_SCHEMA, mode="validation")
    ]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None
    priority: Annotated[int, Field(ge=-(2**31), le=INT32_MAX)] | None = None
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
