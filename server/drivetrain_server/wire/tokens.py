"""The bodies of `/tokenize` and `/detokenize`."""

from __future__ import annotations

from drivetrain_server.wire.chat import ChatFields
from drivetrain_server.wire.sampling import TokenId
from drivetrain_server.wire.validation import WireModel


class TokenizeText(WireModel):
    """A text to encode."""

    model: str | None = None
    """The model that is served; may be left out."""
    prompt: str
    """What to encode."""
    add_special_tokens: bool | None = None
    """True for `prompt`, false for `messages` by default."""
    return_token_strs: bool | None = None
    """Add `token_strs`, the text of each token."""


class TokenizeChat(ChatFields):
    """A conversation to render and encode."""

    model: str | None = None
    """The model that is served; may be left out."""
    add_special_tokens: bool | None = None
    """True for `prompt`, false for `messages` by default."""
    return_token_strs: bool | None = None
    """Add `token_strs`, the text of each token."""


class Detokenize(WireModel):
    """Token ids to decode."""

    model: str | None = None
    """The model that is served; may be left out."""
    tokens: list[TokenId]
    """Token ids."""
    skip_special_tokens: bool | None = None
    """False by default."""
