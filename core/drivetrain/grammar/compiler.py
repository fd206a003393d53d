"""Compiles grammars within hard limits, and keeps the last ones for the requests that send the same again."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from drivetrain.errors import RequestError
from drivetrain.grammar.faults import fault_of
from drivetrain.grammar.grammar import Grammar
from drivetrain.grammar.matcher import COSTLY_S, GrammarMatcher, Pace
from drivetrain.grammar.source import REFUSAL, refusal, source_of
from drivetrain_plugins.contract.batch import Int32Array

if TYPE_CHECKING:
    from llguidance import LLExecutor, LLMatcher, LLTokenizer

_MAX_KEPT = 64
_QUICK_S = 0.05
"""A grammar that compiled in less may be compiled again while an answer to it waits."""
_MAX_LOCATED_S = 0.5
"""In a grammar that took longer, the fault is not looked for by compiling its parts."""
_PROBED_STEPS = 8
_WEAKENED = "Unimplemented keys: "
_LIMITS: dict[str, int | bool] = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""Deterministic: the same grammar is refused on any machine. The steps' bound what a mask costs: 17 us as a rule, and a
quarter of a second for the most ambiguous grammar that was tried."""


class _Refused(Exception):
    """Why a grammar does not pass, in the words of the library."""


class CompiledGrammar:
    """A grammar that has passed: it compiled, and an answer can begin.

    Attributes:
        compile_s: processor time of compiling and of the first masks.
        num_words: 32 bits each, as many as a mask has.
        first_mask_W: what an answer may begin with.
        pace: what masks of its answers cost.
    """

    def __init__(self, source: str, vocabulary: LLTokenizer) -> None:
        started_s = time.thread_time()
        self._source = source
        self._vocabulary = vocabulary
        self._prototype = self._compile()
        self.num_words = -(-vocabulary.vocab_size // 32)
        self.first_mask_W = _check(self._prototype, self.num_words)
        self.compile_s = time.thread_time() - started_s
        self.pace = Pace()

    def matcher(self) -> GrammarMatcher:
        """The state of one answer at its beginning."""
        return GrammarMatcher(self._prototype.deep_copy(), self)

    def renew(self) -> LLMatcher | None:
        """A state at the beginning that shares nothing with those before; None if making it would take long."""
        if self.compile_s > _QUICK_S:
            return None
        prototype = self._prototype = self._compile()
        return prototype.deep_copy()

    def consume(self, guide: LLMatcher, tokens: list[int]) -> None:
        """Let the state of an answer follow tokens, in any thread; others run meanwhile if that may take long."""
        if self.pace.cost_s < COSTLY_S:
            guide.consume_tokens(tokens)
            return
        # The library frees the interpreter's lock only where it consumes for several states.
        executor, nobody = self._costly
        for token in tokens:
            executor.consume_token_par([(guide, token), (nobody.deep_copy(), token)])
            if guide.is_error():
                return

    @cached_property
    def _costly(self) -> tuple[LLExecutor, LLMatcher]:
        """A thread for costly tokens (answers to one grammar share a lock, so one is enough), and a state in error."""
        from llguidance import LLExecutor, LLMatcher

        return LLExecutor(num_threads=1), LLMatcher(self._vocabulary, "", log_level=0)

    def _compile(self) -> LLMatcher:
        from llguidance import LLMatcher, LLParserLimits

        return LLMatcher(self._vocabulary, self._source, log_level=0, limits=LLParserLimits(**_LIMITS))  # pyright: ignore[reportArgumentType]


def compile_grammar(grammar: Grammar, vocabulary: LLTokenizer) -> CompiledGrammar:
    """Compile a grammar over a vocabulary.

    Raises:
        RequestError: it is wrong, not supported, matched by nothing or too complex; says what of it.
    """

    def refused(schema: str) -> str | None:
        try:
            CompiledGrammar(source_of(Grammar(kind="json_schema", value=schema)), vocabulary)
        except _Refused as error:
            return str(error)
        except RequestError as error:
            return str(error).removeprefix(REFUSAL)
        return None

    began_s = time.thread_time()
    try:
        return CompiledGrammar(source_of(grammar), vocabulary)
    except _Refused as error:
        slow = time.thread_time() - began_s > _MAX_LOCATED_S
        raise refusal(fault_of(grammar, str(error), (lambda _: None) if slow else refused)) from None


class GrammarCompiler:
    """Grammar to compiled grammar, by any thread.

    Args:
        open_vocabulary: reads the model's tokens, on first use.
    """

    def __init__(self, open_vocabulary: Callable[[], LLTokenizer]) -> None:
        self._open_vocabulary = open_vocabulary
        self._vocabulary: LLTokenizer | None = None
        self._kept: OrderedDict[Grammar, CompiledGrammar | RequestError] = OrderedDict()
        self._lock = threading.Lock()
        self._compiling = threading.Lock()

    def has(self, grammar: Grammar) -> bool:
        """Whether `compile` would return, or raise, at once."""
        with self._lock:
            return grammar in self._kept

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Compile a grammar, unless it is kept.

        Raises:
            RequestError: it is wrong, not supported, matched by nothing or too complex.
            TokenizerError: the model has no tokenizer that can be rebuilt.
        """
        found = self._find(grammar)
        if found is None:
            with self._compiling:
                found = self._find(grammar)
                if found is None:
                    found = self._compile(grammar)
        if isinstance(found, RequestError):
            raise RequestError(str(found), param=found.param)
        return found

    def _find(self, grammar: Grammar) -> CompiledGrammar | RequestError | None:
        with self._lock:
            found = self._kept.get(grammar)
            if found is not None:
                self._kept.move_to_end(grammar)
            return found

    def _compile(self, grammar: Grammar) -> CompiledGrammar | RequestError:
        if self._vocabulary is None:
            self._vocabulary = self._open_vocabulary()
        made: CompiledGrammar | RequestError
        try:
            made = compile_grammar(grammar, self._vocabulary)
        except RequestError as error:
            made = error
        with self._lock:
            self._kept[grammar] = made
            if len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        return made


def _check(matcher: LLMatcher, num_words: int) -> Int32Array:
    """Refuse what did not compile, what was weakened, and what nothing can begin; else what an answer begins with."""
    if matcher.is_error():
        raise _Refused(matcher.get_error())
    for warning in matcher.get_grammar_warnings():
        if _WEAKENED in warning:
            raise _Refused(warning)
    return _walk(matcher.deep_copy(), num_words)


def _walk(matcher: LLMatcher, num_words: int) -> Int32Array:
    """Refuse what nothing can begin, and what is too costly for the first tokens already; else the first mask."""
    first_mask_W = mask_W = np.zeros(num_words, np.int32)
    for step in range(_PROBED_STEPS):
        matcher.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)
        allowed = np.flatnonzero(np.unpackbits(mask_W.view(np.uint8), bitorder="little"))
        error = matcher.get_error()
        if error.startswith("NoExtension") or not (error or len(allowed)):
            raise _Refused("no text matches it")
        if not error:
            matcher.consume_token(int(allowed[step * len(allowed) // _PROBED_STEPS]))
            error = matcher.get_error()
        if error:
            raise _Refused(error)
        if matcher.is_stopped():
            break
        mask_W = np.zeros_like(first_mask_W)
    return first_mask_W
