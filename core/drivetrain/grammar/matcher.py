"""Where one answer stands in its grammar."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarMatcher:
    """Follows the tokens of one answer and says what may come next.

    It may be a token ahead of what has landed, as masks are made before; a token that is void after all is taken back.

    Args:
        guide: the library's state at the beginning.
        renew: makes another one that shares nothing with it, or None.

    Attributes:
        failure: why the answer cannot go on; None while it can.
    """

    __slots__ = ("_followed", "_guide", "_renew", "failure")

    def __init__(self, guide: LLMatcher, renew: Callable[[], LLMatcher | None]) -> None:
        self._guide = guide
        self._renew = renew
        self._followed: array[int] = array("i")
        self.failure: str | None = None

    @property
    def ended(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return self.failure is None and self._guide.is_stopped()

    def follow(self, tokens: array[int], first: int, ahead: int | None = None) -> None:
        """Come to the state after these tokens.

        Args:
            tokens: prompt and answer, as far as they have landed.
            first: where the answer begins in them.
            ahead: the token after them, if it is known already.
        """
        if self.failure is not None:
            return
        count = len(tokens) - first + (ahead is not None)
        surplus = len(self._followed) - count
        if surplus > 0:
            del self._followed[count:]
            self._guide.rollback(surplus)
        elif surplus < 0:
            new = tokens[first + len(self._followed) :]
            if ahead is not None:
                new.append(ahead)
            self._followed += new
            self._guide.consume_tokens(new.tolist())
        if surplus and self._guide.is_error():
            self._recover()

    def fill(self, address: int, num_bytes: int) -> bool:
        """Write the mask of the next token into memory: as many bytes as the vocabulary has words of 32 bits.

        Returns:
            Whether it was; if not, the answer has ended or failed.
        """
        if self.failure is not None or self._guide.is_stopped():
            return False
        self._guide.unsafe_compute_mask_ptr(address, num_bytes)
        if self._guide.is_error():
            self._recover()
            if self.failure is None:
                self._guide.unsafe_compute_mask_ptr(address, num_bytes)
                self._fail_on_error()
        return self.failure is None

    def _recover(self) -> None:
        """Try once more alone: answers to one grammar share tables whose size is limited, which others may fill."""
        renewed = self._renew()
        if renewed is not None:
            self._guide = renewed
            self._guide.consume_tokens(self._followed.tolist())
        self._fail_on_error()

    def _fail_on_error(self) -> None:
        if self._guide.is_error():
            reason = self._guide.get_error().replace("<non-verbose/>", "").strip()[:200]
            self.failure = f"grammar: the answer cannot go on: {reason}"
