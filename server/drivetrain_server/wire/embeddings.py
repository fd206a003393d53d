"""The body of `/v1/embeddings`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from drivetrain_server.wire.completions import PROMPT_SCHEMA, prompts
from drivetrain_server.wire.sampling import INT32_MAX
from drivetrain_server.wire.validation import WireModel


class EmbeddingRequest(WireModel):
    """Texts or tokens whose embeddings are wanted."""

    model: str
    """Must be the name that `/v1/models` lists."""
    input: Annotated[
        list[str] | list[list[int]], BeforeValidator(prompts), WithJsonSchema(PROMPT_SCHEMA, mode="validation")
    ]
    """At most 2048 inputs."""
    encoding_format: Literal["float", "base64"] | None = None
    """`base64` is little-endian float32. Default: `float`."""
    dimensions: Annotated[int, Field(ge=1, le=INT32_MAX)] | None = None
    """First numbers of the vector alone, brought to length 1 again. Default: the model's own."""
    normalize: bool | None = None
    """Bring each vector to length 1. Default: true."""
    add_special_tokens: bool | None = None
    """Let the tokenizer add its begin and end tokens to texts. Default: true."""
    priority: Annotated[int, Field(ge=-(2**31), le=INT32_MAX)] | None = None
    """Lower runs first. Default: 0."""
    cache_salt: Annotated[str, Field(max_length=256)] | None = None
    """Prefixes are shared only within one salt and key."""
    request_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    """Names the request in the log. Default: made."""
