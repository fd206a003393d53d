"""Checks grammars in a process of their own before the engine compiles them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import select
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from drivetrain.errors import EngineError, Overloaded, RequestError, ShareUsed
from drivetrain.grammar.frames import Verdict, Vocabulary, frame, read_frame
from drivetrain.grammar.grammar import Grammar
from drivetrain.grammar.turns import Turns

_MAX_WAITING = 64
_MAX_OF_ONE = 16
"""Of these, those of one owner who is known."""
_MAX_KEPT = 4096
_MOST_RETRY_S = 120.0
_BUSY_RETRY_S = 20.0
_ANSWER_S = 60.0
"""More than the process takes to start and to give up a grammar."""


class GrammarChecker:
    """A process that starts with the first grammar, and what it said of the last ones.

    Args:
        tokenizer: file or folder that the model's tokenizer is read from.
        vocab_size: tokens of the model; asked when the process starts.
    """

    def __init__(self, tokenizer: Path, vocab_size: Callable[[], int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="grammars")
        self._verdicts: OrderedDict[bytes, str | None] = OrderedDict()
        self._turns = Turns()
        self._last_s = 0.5
        self._closed = False

    async def check(self, grammar: Grammar, owner: str = "") -> None:
        """Return if the grammar can be compiled within the limits; others go on meanwhile.

        Args:
            owner: whose it is. Owners go by turns, so that the costly ones of one delay another by one at most; empty
                is anybody.

        Raises:
            RequestError: it cannot; says why.
            ShareUsed: too many of this owner wait to be checked.
            Overloaded: too many wait to be checked, or the machine is too busy to check this one.
            EngineError: the process cannot be run.
        """
        key = hashlib.sha256(f"{grammar.kind} {grammar.value}".encode("utf-8", "surrogatepass")).digest()
        if key not in self._verdicts:
            self._refuse_if_full(owner)
            async with self._turns.turn(owner):
                if key not in self._verdicts:
                    await self._check(key, grammar)
        error = self._verdicts[key]
        if error is not None:
            raise RequestError(error, param="grammar")

    async def _check(self, key: bytes, grammar: Grammar) -> None:
        verdict = await asyncio.get_running_loop().run_in_executor(self._thread, self._ask, grammar)
        if not verdict.lasting:
            raise Overloaded(verdict.error or "", retry_after_s=_BUSY_RETRY_S)
        self._verdicts[key] = verdict.error
        if len(self._verdicts) > _MAX_KEPT:
            self._verdicts.popitem(last=False)

    def _refuse_if_full(self, owner: str) -> None:
        total, own = self._turns.total, self._turns.count(owner)
        retry_after_s = min(_MOST_RETRY_S, max(1.0, total * self._last_s))
        if owner and own >= _MAX_OF_ONE:
            raise ShareUsed(
                f"{own} grammars of this key wait to be checked, as many as may; wait for one to be answered",
                retry_after_s=retry_after_s,
            )
        if total >= _MAX_WAITING:
            raise Overloaded(f"{total} grammars wait to be checked; try again later", retry_after_s=retry_after_s)

    def close(self) -> None:
        """End the process; what is asked from now on fails."""
        self._closed = True
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._end()

    def _ask(self, grammar: Grammar) -> Verdict:
        """The process's verdict. One that has died is started again, once."""
        for _ in range(2):
            if self._closed:
                raise EngineError("the server is ending and checks no more grammars")
            process = self._process or self._start()
            began = time.monotonic()
            try:
                assert process.stdin is not None, "standard input is a pipe"
                process.stdin.write(frame(grammar))
                verdict = read_frame(_Answers(process), Verdict)
            except (BrokenPipeError, TimeoutError):
                verdict = None
            except BaseException:
                self._end()  # or the next grammar would read this one's verdict
                raise
            if verdict is not None:
                self._last_s = time.monotonic() - began
                return verdict
            self._end()
        raise EngineError("the process that checks grammars ends by itself; the log of the server says why")

    def _start(self) -> subprocess.Popen[bytes]:
        # One thread, so that it can fork.
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "drivetrain.grammar.check_process"]
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
            )
        except OSError as error:
            raise EngineError(f"the process that checks grammars cannot be started: {error}") from error
        self._process = process
        assert process.stdin is not None, "standard input is a pipe"
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(frame(Vocabulary(tokenizer=str(self._tokenizer), vocab_size=self._vocab_size())))
        return process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        with process:
            process.wait()


class _Answers:
    """What a process writes, until a moment."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None, "standard output is a pipe"
        self._pipe = process.stdout
        self._until_s = time.monotonic() + _ANSWER_S

    def read(self, size: int, /) -> bytes | None:
        """At most so many bytes.

        Raises:
            TimeoutError: none came in time.
        """
        poll = select.poll()  # unlike select(), it takes descriptors of any number
        poll.register(self._pipe, select.POLLIN)
        if not poll.poll(1000 * max(0.0, self._until_s - time.monotonic())):
            raise TimeoutError
        return self._pipe.read(size)
