"""What an answer consists of, in the order in which it becomes known."""

from __future__ import annotations

import msgspec

from drivetrain.messages import TokenLogprob


class _Event(msgspec.Struct, kw_only=True):
    """
    Attributes:
        token_ids: tokens that became known with this event. Tokens without an event of their own (markers, held text)
            are in the next one, so that all events of an answer together hold all of its tokens in order.
        logprobs: one entry a token, where asked for.
    """

    token_ids: list[int] = []
    logprobs: list[TokenLogprob] = []


class ReasoningDelta(_Event):
    """More text of the reasoning; never empty, but where a client wants tokens that bring no text."""

    text: str


class ContentDelta(_Event):
    """More text of the answer itself; never empty, but where a client wants tokens that bring no text."""

    text: str


class ToolCallBegin(_Event):
    """A call of a tool begins. Calls count from 0 and never overlap."""

    index: int
    id: str
    name: str


class ToolCallArguments(_Event):
    """More of a call's arguments, which are the text of one JSON object in the end (if the model wrote one)."""

    index: int
    text: str


class ToolCallEnd(_Event):
    """A call is complete: no more arguments follow."""

    index: int


Spoken = ReasoningDelta | ContentDelta | ToolCallBegin | ToolCallArguments | ToolCallEnd
"""Everything that a model's text can turn out to be."""
