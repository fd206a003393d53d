"""Masks of a step's rows, made while the device computes its logits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import numpy as np

from drivetrain.grammar.mask_threads import MaskThreads
from drivetrain.grammar.matcher import GrammarMatcher
from drivetrain.request import Request
from drivetrain.scheduling.schedule import ScheduledRow
from drivetrain_plugins.contract.batch import Int32Array, TokenMasks

Newest = Callable[[], Mapping[Request, int]]
"""Waits for the steps in flight and gives the tokens that they sampled."""
_ANY = -1
_PATIENCE_S = 0.005
"""How long a step waits for masks; rows without theirs sit it out."""


class MaskMaker:
    """Makes the masks of steps, in threads.

    Args:
        end_ids: the model's end tokens, which a request may ask to ignore.
    """

    def __init__(self, vocab_size: int, end_ids: Collection[int]) -> None:
        self._words = -(-vocab_size // 32)
        self._no_end = np.full(self._words, _ANY, np.int32)
        bits = self._no_end.view(np.uint32)
        for end_id in end_ids:
            bits[end_id // 32] &= ~np.uint32(1 << end_id % 32)
        self._threads = MaskThreads()

    def masks_of(
        self, sampled: Sequence[ScheduledRow], newest: Newest, sit_out: Callable[[Request], None]
    ) -> TokenMasks:
        """The masks of the rows whose answers have a grammar.

        Args:
            sampled: the step's rows that sample, in order.
            sit_out: told of each row whose mask takes too long; what the step samples for it is void.
        """
        places = [place for place, row in enumerate(sampled) if row.request.matcher is not None]
        requests = [sampled[place].request for place in places]

        def fill() -> Int32Array:
            ahead: Mapping[Request, int] = {}
            if any(request.in_flight > 1 for request in requests):
                ahead = newest()
            going_on = [request for request in requests if not _ends_with(request, ahead.get(request))]
            late = self._follow((request, ahead.get(request)) for request in going_on)
            masks_MW = np.empty((len(requests), self._words), np.int32)
            for mask_W, request in zip(masks_MW, requests, strict=True):
                made_W = None if request in late else _matcher(request).mask_W
                # Void rows may take any token: their answer ended with the token ahead, or failed, or they sit out.
                mask_W[:] = _ANY if made_W is None else made_W[: self._words]
                if request.params.ignore_eos:
                    mask_W &= self._no_end
            for request in late:
                sit_out(request)
            return masks_MW

        return TokenMasks(rows=np.array(places, np.int32), fill=fill)

    def land(self, tokens: Iterable[tuple[Request, int]]) -> None:
        """Let answers follow tokens that are about to land, where no later step has let them; some may not be done."""
        self._follow((request, token) for request, token in tokens if not _ends_with(request, token))

    def is_ready(self, request: Request) -> bool:
        """Whether an answer has followed all that has landed and has its mask; sees to it if not."""
        matcher = _matcher(request)
        if not matcher.making and _aim(request):
            self._threads.start(matcher)
        return not matcher.making

    def wait(self, timeout_s: float) -> None:
        """Until a mask is done, or so long."""
        self._threads.wait(timeout_s)

    def close(self) -> None:
        """End the threads."""
        self._threads.close()

    def _follow(self, answers: Iterable[tuple[Request, int | None]]) -> set[Request]:
        """Bring answers to their last token, and those that may come next; tells which take too long for that."""
        soon: list[GrammarMatcher] = []
        asked: list[Request] = []
        for request, ahead in answers:
            matcher = _matcher(request)
            if not matcher.making and _aim(request, ahead):
                if matcher.pace.waits:
                    self._threads.start(matcher)
                else:
                    soon.append(matcher)
            asked.append(request)
        if soon:
            self._threads.make(soon, _PATIENCE_S)
        return {request for request in asked if _matcher(request).making}


def _aim(request: Request, ahead: int | None = None) -> bool:
    length = len(request.tokens) + (ahead is not None)
    return _matcher(request).aim(request.tokens, request.num_prompt, ahead, masked=length < request.length_limit)


def _ends_with(request: Request, token: int | None) -> bool:
    """Whether a token that is about to land is an end token that counts."""
    return token in request.eos_ids and len(request.tokens) + 1 > request.stop_above


def _matcher(request: Request) -> GrammarMatcher:
    assert request.matcher is not None, "only answers with a grammar have masks"
    return request.matcher
