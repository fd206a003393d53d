"""The text of all completions of one request as updates arrive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from drivetrain.completion_text import CompletionText, TextDelta
from drivetrain.errors import RequestFailed
from drivetrain.messages import Update


class Abort(Protocol):
    """Ends one completion of a request that runs, or all; as `EngineClient.abort`."""

    def __call__(self, request_id: str, index: int | None = None) -> object: ...


class AnswerText:
    """Updates of one request in, text out.

    Args:
        request_id: the request.
        completions: their text, by index.
        abort: told of a completion that its text has ended while others go on.

    Attributes:
        num_live: completions that have not ended.
    """

    __slots__ = ("_abort", "_request_id", "completions", "num_live")

    def __init__(self, request_id: str, completions: Sequence[CompletionText], abort: Abort) -> None:
        self._request_id = request_id
        self._abort = abort
        self.completions = completions
        self.num_live = len(completions)

    def push(self, updates: Sequence[Update]) -> list[TextDelta]:
        """Take updates in: one delta a completion for all of them. A completion that a stop string ended is aborted.

        The last one is not: whoever reads the answer ends the request once `num_live` is 0.

        Raises:
            RequestFailed: the engine failed or aborted a completion.
        """
        deltas: dict[int, TextDelta] = {}
        for update in updates:
            text = self.completions[update.index]
            if text.finish_reason is not None:
                continue
            delta = text.push(update)
            if delta.finish_reason in ("error", "abort"):
                raise RequestFailed(update.error or "the engine aborted this request before it finished")
            if delta.finish_reason is not None:
                self.num_live -= 1
                if update.finish_reason is None and self.num_live:
                    self._abort(self._request_id, update.index)
            earlier = deltas.get(update.index)
            deltas[update.index] = delta if earlier is None else earlier.followed_by(delta)
        return list(deltas.values())
