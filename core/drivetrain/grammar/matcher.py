"""Where one answer stands in its grammar."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from drivetrain_plugins.contract.batch import Int32Array

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from drivetrain.grammar.compiler import CompiledGrammar

COSTLY_S = 0.002
"""Processor time of a mask. With more, answers to its grammar are scheduled only once their masks are made."""
_CHEAP_AGAIN = 16
"""Masks in a row that must be cheap before that ends."""


@dataclass(slots=True, kw_only=True)
class Pace:
    """What the masks of one grammar cost of late. Its answers share a lock of the library, and so they share this.

    Attributes:
        cost_s: processor time of the last one.
        waits: how many of the next ones are waited for before their rows are scheduled.
    """

    cost_s: float = 0.0
    waits: int = 0

    def note(self, cost_s: float) -> None:
        """Take in what a mask has cost."""
        self.cost_s = cost_s
        if cost_s > COSTLY_S:
            self.waits = _CHEAP_AGAIN
        elif self.waits:
            self.waits -= 1


class GrammarMatcher:
    """Follows the tokens of one answer and says what may come next.

    It may be a token ahead of what has landed, as masks are made before; a token that is void after all is taken back.
    `aim` tells it where to go, `work` brings it there, in any thread; between the two nobody else may touch it, and its
    attributes tell of where it was.

    Args:
        guide: the library's state at the beginning.
        grammar: what it belongs to.

    Attributes:
        making: whether `work` is still to be done.
        mask_W: the tokens that may come next, as bits in 32 * W; None if there was no need of it, or no token may.
        ended: whether the answer is complete and nothing can follow.
        failure: why the answer cannot go on; None while it can.
    """

    __slots__ = (
        "_followed",
        "_grammar",
        "_guide",
        "_masked",
        "_new",
        "_surplus",
        "ended",
        "failure",
        "making",
        "mask_W",
    )

    def __init__(self, guide: LLMatcher, grammar: CompiledGrammar) -> None:
        self._guide = guide
        self._grammar = grammar
        self._followed: array[int] = array("i")
        self._new: list[int] = []
        self._surplus = 0
        self._masked = True
        self.making = False
        self.mask_W: Int32Array | None = grammar.first_mask_W
        self.ended = False
        self.failure: str | None = None

    @property
    def pace(self) -> Pace:
        """What masks of its grammar cost."""
        return self._grammar.pace

    def aim(self, tokens: array[int], first: int, ahead: int | None = None, *, masked: bool = True) -> bool:
        """Set out for the state after these tokens.

        Args:
            tokens: prompt and answer, as far as they have landed.
            first: where the answer begins in them.
            ahead: the token after them, if it is known already.
            masked: whether the mask of the token after those is needed.

        Returns:
            Whether there is `work` to do.
        """
        assert not self.making, "one goal at a time"
        if self.failure is not None:
            return False
        count = len(tokens) - first + (ahead is not None)
        surplus = len(self._followed) - count
        if surplus == 0 and (not masked or self.ended or self.mask_W is not None):
            return False
        self._surplus = max(0, surplus)
        self._new = []
        if surplus > 0:
            del self._followed[count:]
        elif surplus < 0:
            new = tokens[first + len(self._followed) :]
            if ahead is not None:
                new.append(ahead)
            self._followed += new
            self._new = new.tolist()
        self._masked = masked
        self.making = True
        return True

    def work(self) -> None:
        """Come to the state that was aimed at, and make its mask."""
        begun_s = time.thread_time()
        self.mask_W = None
        self._move()
        if self._masked and self.failure is None and not self.ended:
            self._make_mask()
            self._grammar.pace.note(time.thread_time() - begun_s)
        self.making = False

    def follow(self, tokens: array[int], first: int, ahead: int | None = None) -> None:
        """Be at the state after these tokens, at once; as `aim`."""
        if self.aim(tokens, first, ahead):
            self.work()

    def _move(self) -> None:
        if self._surplus:
            self._guide.rollback(self._surplus)
        if self._new:
            self._grammar.consume(self._guide, self._new)
        if self._guide.is_error():
            self._recover()
        self.ended = self.failure is None and self._guide.is_stopped()

    def _make_mask(self) -> None:
        mask_W = np.empty(self._grammar.num_words, np.int32)
        self._guide.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)
        if self._guide.is_error():
            self._recover()
            if self.failure is None:
                self._guide.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)
                self._fail_on_error()
        self.ended = self.failure is None and self._guide.is_stopped()
        if self.failure is None and not self.ended:
            self.mask_W = mask_W

    def _recover(self) -> None:
        """Try once more alone: answers to one grammar share tables whose size is limited, which others may fill."""
        if "lexer error" in self._guide.get_error().lower():
            renewed = self._grammar.renew()
            if renewed is not None:
                self._guide = renewed
                self._grammar.consume(renewed, self._followed.tolist())
        self._fail_on_error()

    def _fail_on_error(self) -> None:
        if self._guide.is_error():
            reason = self._guide.get_error().replace("<non-verbose/>", "").strip()[:200]
            self.failure = f"grammar: the answer cannot go on: {reason}"
