"""A process that compiles kernels into Triton's cache on disk for the one that started it.

It imports torch, Triton and a backend's kernels while its parent does the same, lists the same variants, and compiles
those that it is told, for the parent's GPU and without one of its own. It ends when its standard input does.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from drivetrain_plugins.import_string import import_object
from drivetrain_triton.device.compile_words import Compiled, Ready, Word, line_of

if TYPE_CHECKING:  # what imports torch is imported once the standard streams are sorted
    from collections.abc import Callable, Sequence

    from drivetrain_plugins.contract.executor import ExecutorLimits
    from drivetrain_plugins.contract.model import DecoderSpec
    from drivetrain_triton.arch import GpuArch
    from drivetrain_triton.launch import Variant

    ListVariants = Callable[[DecoderSpec, ExecutorLimits, GpuArch], Sequence[Variant]]

BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from drivetrain_triton.device.compile_process import main; main(sys.argv[2], int(sys.argv[3]))"
)
LAST_WORK_S = 10.0
_NICE = 5
"""So that loading weights goes first where processors are few."""


def main(listing: str, lanes: int) -> None:
    """Serve the parent until it says no more.

    Args:
        listing: "module:function" that lists a model's variants from its spec, limits and the part.
        lanes: variants that are compiled side by side.
    """
    # The parent decides: a terminal's Ctrl-C, or the SIGTERM of a service manager, reaches both.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICE)
    # What libraries print goes where errors go, and cannot be taken for a word.
    answers = os.dup(1)
    os.dup2(2, 1)
    told: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(told,), name="listen", daemon=True).start()
    status = 1
    try:
        _serve(listing, lanes, told, answers)
        status = 0
    except Exception:
        with suppress(OSError):  # the disk is full
            traceback.print_exc()
    finally:
        # Without the interpreter's shutdown: it would wait for libraries, and fail over the thread that listens.
        with suppress(OSError):
            sys.stderr.flush()
        os._exit(status)


def _serve(listing: str, lanes: int, told: queue.SimpleQueue[bytes], answers: int) -> None:
    from drivetrain_triton.cross_compile import compile_here_for
    from drivetrain_triton.device.compilation import plain_variants
    from drivetrain_triton.device.compile_job import decode_job
    from drivetrain_triton.launch import hash_compiler, prepare_kernels

    list_variants = cast("ListVariants", import_object(listing))
    hash_compiler()
    line = told.get()
    if not line:
        return
    job = decode_job(line)
    compile_here_for(job.target)
    listed = list_variants(job.spec, job.limits, job.arch)
    prepare_kernels(listed)
    variants = plain_variants(listed)
    speaking = threading.Lock()

    def say(word: Word) -> None:
        with speaking:
            os.write(answers, line_of(word))

    def compile_one(index: int) -> None:
        say(_compile(variants, index))

    say(Ready(kernels=len(variants)))
    with ThreadPoolExecutor(lanes, "compile") as pool:
        while line := told.get():
            pool.submit(compile_one, int(line))
        pool.shutdown(cancel_futures=True)


def _compile(variants: Sequence[Variant], index: int) -> Compiled:
    try:
        return Compiled(index=index, hash=variants[index].compile())
    except Exception as error:  # the parent says so, and compiles it itself
        return Compiled(index=index, error=f"{type(error).__name__}: {error}"[:2000])


def _listen(told: queue.SimpleQueue[bytes]) -> None:
    """Hear the parent out from the beginning, so that it never waits while this process imports."""
    for line in sys.stdin.buffer:
        told.put(line)
    told.put(b"")
    # Nobody waits for what is still being compiled, or hangs.
    time.sleep(LAST_WORK_S)
    os._exit(1)
