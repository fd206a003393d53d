"""Token ids to text while they arrive: whole characters only, stop strings found across token borders.

Text leaves as soon as it is certain. Two things hold it back: bytes of a character that is not complete yet, and the
longest end of the text that a stop string could begin with. Work per token does not grow with the text.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drivetrain.tokenizer import Tokenizer

_MAX_CHARACTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class Delta:
    """What a push of tokens added."""

    text: str
    """New text that is certain to be part of the answer."""
    stopped: str | None
    """The stop string that ended the answer, if one did."""
    num_tokens_used: int
    """Tokens of this push up to and with the one that completed the stop string; all of them without one."""


class StopAutomaton:
    """Finds the first of several strings to be completed in a text that comes in pieces (Aho and Corasick's automaton).

    A state is the longest end of the text so far that some stop string begins with; `depth` is its length.
    """

    __slots__ = ("_following", "_found", "_shorter", "depth")

    def __init__(self, stops: Sequence[str]) -> None:
        self._following: list[dict[str, int]] = [{}]
        """By state: letter to the state one letter longer."""
        self.depth: list[int] = [0]
        self._found: list[str | None] = [None]
        """By state: the longest stop string that the text ends with."""
        for stop in stops:
            self._insert(stop)
        self._shorter: list[int] = [0] * len(self.depth)
        """By state: the longest proper end of it that is a state too."""
        self._link()

    def _insert(self, stop: str) -> None:
        state = 0
        for letter in stop:
            following = self._following[state].get(letter)
            if following is None:
                following = len(self.depth)
                self._following[state][letter] = following
                self._following.append({})
                self.depth.append(self.depth[state] + 1)
                self._found.append(None)
            state = following
        if state:
            self._found[state] = stop

    def _link(self) -> None:
        queue = deque(self._following[0].values())
        while queue:
            state = queue.popleft()
            if self._found[state] is None:
                self._found[state] = self._found[self._shorter[state]]
            for letter, child in self._following[state].items():
                self._shorter[child] = self._step(self._shorter[state], letter)
                queue.append(child)

    def _step(self, state: int, letter: str) -> int:
        following, shorter = self._following, self._shorter
        while state and letter not in following[state]:
            state = shorter[state]
        return following[state].get(letter, 0)

    def scan(self, state: int, text: str) -> tuple[int, int, str | None]:
        """Follow `text` from `state`. Returns the new state, the letters read, and the stop string if one was found."""
        if not state and self._following[0].keys().isdisjoint(text):
            return 0, len(text), None
        step, found = self._step, self._found
        for position, letter in enumerate(text):
            state = step(state, letter)
            if found[state] is not None:
                return state, position + 1, found[state]
        return state, len(text), None


@lru_cache(maxsize=256)
def stop_automaton(stops: tuple[str, ...]) -> StopAutomaton:
    """The automaton for these stop strings; requests mostly repeat a few sets."""
    return StopAutomaton(stops)


class Detokenizer:
    """Decodes one sequence. The concatenation of everything it returns is the whole text, however tokens were grouped.

    Args:
        tokenizer: turns ids into bytes.
        prompt_ids: what came before. Its incomplete last character is completed by the answer, and an answer to a
            prompt keeps its leading space.
        stop: strings that end the answer; the one completed first wins, of several completed at once the longest.
        include_stop: leave the stop string in the text.
        pieces: what each token adds to the text; by default special tokens add nothing.
    """

    __slots__ = ("_at_start", "_automaton", "_decoder", "_held", "_include_stop", "_pieces", "_state", "_stopped")

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int] = (),
        stop: Sequence[str] = (),
        include_stop: bool = False,
        pieces: Mapping[int, bytes] | None = None,
    ) -> None:
        self._pieces = tokenizer.visible_pieces if pieces is None else pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pending = _incomplete_end(b"".join([self._pieces[id] for id in prompt_ids[-_MAX_CHARACTER_BYTES:]]))
        self._decoder.decode(pending)
        self._at_start = tokenizer.strips_leading_space and not any(self._pieces[id] for id in prompt_ids)
        self._automaton = stop_automaton(tuple(stop)) if stop else None
        self._include_stop = include_stop
        self._state = 0
        self._held = ""
        """Text that is decoded, but may turn out to be the beginning of a stop string."""
        self._stopped: str | None = None

    @property
    def settled(self) -> bool:
        """Whether nothing is held back and nothing looked for: a token of whole characters would add just those."""
        return self._automaton is None and not self._at_start and not self._decoder.getstate()[0]

    def push(self, ids: Sequence[int]) -> Delta:
        """Add tokens. After a stop string was found, further tokens add nothing."""
        if self._stopped is not None:
            return Delta("", self._stopped, 0)
        pieces = self._pieces
        if self._automaton is None:
            return Delta(self._decode(b"".join([pieces[id] for id in ids])), None, len(ids))
        texts: list[str] = []
        for used, token_id in enumerate(ids, start=1):
            texts.append(self._match(self._automaton, self._decode(pieces[token_id])))
            if self._stopped is not None:
                return Delta("".join(texts), self._stopped, used)
        return Delta("".join(texts), None, len(ids))

    def finish(self) -> str:
        """The rest of the text, when no more tokens come: what was held back, and U+FFFD for a broken character."""
        if self._stopped is not None:
            return ""
        text = self._decode(b"", final=True)
        if self._automaton is not None:
            text = self._match(self._automaton, text)
            text += self._held
            self._held = ""
        return text

    def _decode(self, raw: bytes, final: bool = False) -> str:
        text = self._decoder.decode(raw, final)
        if self._at_start and text:
            self._at_start = False
            return text.removeprefix(" ")
        return text

    def _match(self, automaton: StopAutomaton, text: str) -> str:
        """Run new text past the stop strings; returns what is certain and holds the rest."""
        if not text:
            return ""
        self._state, num_read, self._stopped = automaton.scan(self._state, text)
        known = self._held + text[:num_read]
        if self._stopped is not None:
            self._held = ""
            return known if self._include_stop else known[: len(known) - len(self._stopped)]
        certain = len(known) - automaton.depth[self._state]
        self._held = known[certain:]
        return known[:certain]


def _incomplete_end(raw: bytes) -> bytes:
    """The first bytes of a character that `raw` ends with, or nothing."""
    for length in range(1, min(_MAX_CHARACTER_BYTES, len(raw) + 1)):
        lead = raw[-length]
        if lead >= 0xC0:
            needed = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            return raw[-length:] if needed > length else b""
        if lead < 0x80:
            return b""
    return b""
