"""Masks of a step's rows, made while the device computes its logits."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from drivetrain.request import Request
from drivetrain.scheduling.schedule import ScheduledRow
from drivetrain_plugins.contract.batch import Int32Array, TokenMasks

Newest = Callable[[], Mapping[Request, int]]
"""Waits for the steps in flight and gives the tokens that they sampled."""
_ANY = -1


class MaskMaker:
    """Makes the masks of steps.

    Args:
        end_ids: the model's end tokens, which a request may ask to ignore.
    """

    def __init__(self, vocab_size: int, end_ids: Collection[int]) -> None:
        self._words = -(-vocab_size // 32)
        self._no_end = np.full(self._words, _ANY, np.int32)
        bits = self._no_end.view(np.uint32)
        for end_id in end_ids:
            bits[end_id // 32] &= ~np.uint32(1 << end_id % 32)

    def masks_of(self, sampled: Sequence[ScheduledRow], newest: Newest) -> TokenMasks:
        """The masks of the rows whose answers have a grammar.

        Args:
            sampled: the step's rows that sample, in order.
        """
        places = [place for place, row in enumerate(sampled) if row.request.matcher is not None]
        requests = [sampled[place].request for place in places]

        def fill() -> Int32Array:
            ahead: Mapping[Request, int] = {}
            if any(request.in_flight > 1 for request in requests):
                ahead = newest()
            masks_MW = np.empty((len(requests), self._words), np.int32)
            for mask_W, request in zip(masks_MW, requests, strict=True):
                self._fill_one(mask_W, request, ahead.get(request))
            return masks_MW

        return TokenMasks(rows=np.array(places, np.int32), fill=fill)

    def _fill_one(self, mask_W: Int32Array, request: Request, ahead: int | None) -> None:
        """One row's mask; any token if the row is void, since the answer ended with the token ahead."""
        matcher = request.matcher
        assert matcher is not None, "only rows with a grammar are listed"
        ends = ahead in request.eos_ids and len(request.tokens) + 1 > request.stop_above
        if not ends:
            matcher.follow(request.tokens, request.num_prompt, ahead)
        if ends or not matcher.fill(mask_W.ctypes.data, mask_W.nbytes):
            mask_W[:] = _ANY
        elif request.params.ignore_eos:
            mask_W &= self._no_end
