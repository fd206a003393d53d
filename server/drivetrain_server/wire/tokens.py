"""The bodies of `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from drivetrain_server.wire.chat import ChatFields
from drivetrain_server.wire.sampling import TokenId
from drivetrain_server.wire.validation import WireModel


class TokenizeText(WireModel):
    """A text to encode."""

    model: str | None = None
    prompt: str
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeChat(ChatFields):
    """A conversation to render and encode."""

    model: str | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class Detokenize(WireModel):
    """Token ids to decode."""

    model: str | None = None
    tokens: list[TokenId] = Field(description="Token ids.")
    skip_special_tokens: Annotated[bool | None, Field(description="Leave special tokens out; false by default.")] = None
