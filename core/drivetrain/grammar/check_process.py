"""The process that checks grammars: `python -m drivetrain.grammar.check_process`, frames on its standard streams.

Each grammar is compiled in a fork of its own, under limits of time, memory and stack that are tighter than those of the
engine, which compiles it again. Whatever a grammar does to the compiler, the fork alone ends. This process runs no
thread, so that forking it is safe, and it ends when its standard input closes.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.errors import RequestError
from drivetrain.grammar.compiler import compile_grammar
from drivetrain.grammar.frames import Verdict, Vocabulary, frame, read_frame
from drivetrain.grammar.grammar import Grammar
from drivetrain.grammar.vocabulary import open_vocabulary
from drivetrain.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from llguidance import LLTokenizer

MAX_CPU_S = 2
MAX_WALL_S = 20
MAX_BYTES = 512 << 20
"""Address space beyond what this process has."""
MAX_STACK_BYTES = 4 << 20
_PASSED, _REFUSED = b"+", b"-"


def main() -> int:
    """Check what comes until nothing comes any more."""
    # A terminal's Ctrl-C, or a service manager's SIGTERM, reaches all processes; this one ends with the one it serves.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    told = read_frame(requests, Vocabulary)
    if told is None:
        return 0
    tokenizer = load_tokenizer(Path(told.tokenizer))
    vocabulary = open_vocabulary(tokenizer, told.vocab_size, tokenizer.eos_ids)
    gc.collect()
    gc.freeze()
    while (grammar := read_frame(requests, Grammar)) is not None:
        answers.write(frame(check(grammar, vocabulary)))
        answers.flush()
    return 0


def check(grammar: Grammar, vocabulary: LLTokenizer) -> Verdict:
    """What becomes of a grammar."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        _judge(grammar, vocabulary, writing)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read()
    _, status, used = os.wait4(pid, 0)
    if said[:1] == _PASSED:
        return Verdict()
    if said[:1] == _REFUSED:
        return Verdict(error=said[1:].decode("utf-8", "replace"))
    return _verdict_on(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, used.ru_utime + used.ru_stime)


def _verdict_on(ended_by: int, cpu_s: float) -> Verdict:
    """The verdict on a grammar whose fork ended by itself (0) or by a signal, without a word."""
    if ended_by == signal.SIGALRM:
        return Verdict(
            error=f"grammar: compiling it was given up after {MAX_WALL_S} s, of which this busy machine gave it"
            f" {cpu_s:.1f} s of processor time; {MAX_CPU_S} s are allowed, so it may be fine: try again later",
            lasting=False,
        )
    if ended_by == signal.SIGKILL:
        return Verdict(
            error="grammar: compiling it was ended from outside, perhaps for want of memory; try again later",
            lasting=False,
        )
    slow = ended_by == signal.SIGXCPU
    reason = f"{MAX_CPU_S} s of processor time" if slow else "memory, or deeper nesting, than is allowed"
    return Verdict(error=f"grammar: compiling it takes more {'than ' if slow else ''}{reason}; simplify it")


def _judge(grammar: Grammar, vocabulary: LLTokenizer, answer: int) -> None:
    """In the fork: compile under limits, tell how that went, and end."""
    try:
        _limit()
        try:
            compile_grammar(grammar, vocabulary)
            said = _PASSED
        except RequestError as error:
            said = _REFUSED + str(error).encode()
        os.write(answer, said[:4096])
    finally:
        os._exit(0)


def _limit() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what a runtime prints as it gives up is of no use to the operator
    signal.alarm(MAX_WALL_S)
    limits = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_CPU, MAX_CPU_S), (resource.RLIMIT_STACK, MAX_STACK_BYTES)]
    with suppress(FileNotFoundError):  # other systems than Linux do not say, and do not hold to it
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limits.append((resource.RLIMIT_AS, pages * resource.getpagesize() + MAX_BYTES))
    for kind, value in limits:
        resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


if __name__ == "__main__":
    sys.exit(main())
