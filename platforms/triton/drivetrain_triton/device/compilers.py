"""Processes that compile a model's kernels where Triton's cache is empty, as the process that serves sees them.

Triton's front end holds Python's lock, so threads alone bring little. Processes must import torch first, as long as the
one that serves does; so they are started before it has torch itself. Imports neither torch nor Triton.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from drivetrain_plugins.resources import available_memory_bytes, usable_cores
from drivetrain_triton.device.compile_process import BOOTSTRAP
from drivetrain_triton.device.compile_words import MAX_LINE_BYTES, Compiled, Ready, Word

LEAST_PROCESSORS = 6
PROCESSORS_A_PROCESS = 3
MOST_PROCESSES = 5
MEMORY_A_PROCESS = 2 << 30
"""Bytes that must be free for each, which takes a few hundred MB of them."""
LANES = 2
"""Kernels that a process compiles at once: the front end of one beside the back end of another."""
LEAST_THREADS = 3
"""Threads that compile in this process, from before the others are ready."""
KERNEL_LIMIT_S = 60.0
"""What takes a hundredth of it on an idle machine."""
_END_LIMIT_S = 5.0
_TAIL_BYTES = 2000
_OWN_WAY = ("TRITON_INTERPRET", "TRITON_ALWAYS_COMPILE", "TRITON_CACHE_MANAGER", "TRITON_REMOTE_CACHE_BACKEND")
"""Variables under which what another process compiled is not found in the cache on disk."""

_log = logging.getLogger(__name__)
_begun: ContextVar[Compilers | None] = ContextVar("compilers", default=None)


def begin_compilers(listing: str) -> Callable[[], None]:
    """Start processes that will compile a model's kernels, if that is worth it; `taken_compilers` gives them.

    It is where no kernel is compiled yet and there are processors and memory to spare.

    Args:
        listing: "module:function" that lists a model's variants.

    Returns:
        What ends them, at any time and more than once.
    """
    _begun.set(None)
    try:
        count = num_processes(os.environ, usable_cores(), available_memory_bytes())
        if count:
            compilers = Compilers(listing, count)
            _begun.set(compilers)
            return compilers.close
    except (OSError, RuntimeError) as error:  # threads that cannot be started are a RuntimeError
        _log.warning("no processes that compile kernels can be started, so the start takes longer: %s", error)
    return _nothing


def _nothing() -> None:
    pass


def taken_compilers() -> Compilers | None:
    """The processes that were begun here, once."""
    compilers = _begun.get()
    _begun.set(None)
    return compilers


def num_processes(environment: Mapping[str, str], processors: int, free_bytes: int) -> int:
    """How many processes a start is worth; 0 is none."""
    if processors < LEAST_PROCESSORS or any(environment.get(name) for name in _OWN_WAY):
        return 0
    if _holds_kernels(cache_folder(environment)):
        return 0
    return min(processors // PROCESSORS_A_PROCESS, free_bytes // MEMORY_A_PROCESS, MOST_PROCESSES)


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where Triton keeps what it compiled."""
    if own := environment.get("TRITON_CACHE_DIR"):
        return Path(own)
    return Path(environment.get("TRITON_HOME") or os.path.expanduser("~")) / ".triton" / "cache"


def _holds_kernels(folder: Path) -> bool:
    """Whether Triton completed a kernel there; its module for the driver alone does not count."""
    return next(folder.glob("*/__grp__*.json"), None) is not None


class Compilers:
    """Several processes that share the variants of one model with the threads of this one.

    Whoever is free takes the next variant, so nobody waits for a process that is still importing, and what a process
    does not bring to an end is compiled here. No variant is compiled twice.

    Attributes:
        num_compiled: variants that processes compiled.
    """

    def __init__(self, listing: str, count: int) -> None:
        self._processes: list[CompilerProcess] = []
        try:
            for _ in range(count):
                self._processes.append(CompilerProcess(listing, LANES))
        except (OSError, RuntimeError):
            self.close()
            raise
        # A place is where one variant is compiled at a time: a lane of a process, or, None, a thread here. There are
        # always as many: the lanes of a process that is lost become threads.
        self._places: queue.SimpleQueue[CompilerProcess | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._remaining = 0
        self.num_compiled = 0

    def begin(self, job: bytes, total: int, threads: int) -> int:
        """Hand out the job.

        Args:
            job: a line. total: variants that will be compiled.
            threads: that would compile where there are no processes.

        Returns:
            How many threads should call `compile` side by side. Most of them wait.
        """
        self._remaining = total
        lanes = LANES * len(self._processes)
        here = max(threads - lanes, LEAST_THREADS)
        for _ in range(here):
            self._places.put(None)
        for process in self._processes:
            process.begin(job, total, self._add_lanes)
        if not total:
            self.close()
        # Beside each that waits for a process there may be one that loads what the process compiled before.
        return here + 2 * lanes

    def compile(self, index: int, here: Callable[[], str]) -> None:
        """Have a variant compiled wherever there is room first, then load it here.

        Args:
            here: takes the variant from the cache on disk, else compiles it. Returns its hash.
        """
        place = self._places.get()
        compiled = "" if place is None else place.compile(index)
        if compiled:  # another thread may have the lane while this one loads
            self._places.put(place)
        try:
            found = here()
            if place is not None and compiled and compiled != found:
                place.end(f"compiled variant {index} as {compiled}, and this process as {found}")
        finally:
            if not compiled:
                self._places.put(None)
            with self._lock:
                self.num_compiled += bool(compiled)
                self._remaining -= 1
                done = not self._remaining
            if done:
                self.close()

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.close()

    @property
    def alive(self) -> int:
        """Processes that have not ended."""
        return sum(process.alive for process in self._processes)

    def _add_lanes(self, process: CompilerProcess) -> None:
        for _ in range(LANES):
            self._places.put(process)


class CompilerProcess:
    """One process; it ends when this end of its standard input closes, be it by the end of this process."""

    def __init__(self, listing: str, lanes: int) -> None:
        self._errors = _scratch_file()
        path = json.dumps([str(folder) for folder in sys.path])
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", BOOTSTRAP, path, listing, str(lanes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                # No GPU is for it: HIP takes an empty list for none given. Its threads are its lanes.
                env=os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1", "OMP_NUM_THREADS": "1"},
            )
        except OSError:
            self._errors.close()
            raise
        self._job: Future[_Job | None] = Future()
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[Compiled | None]] = {}
        self._over = False
        self._reason = ""
        self._thread = threading.Thread(target=self._live, name="compiler", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self.close()
            self._bury()
            raise

    @property
    def alive(self) -> bool:
        """Whether something is left of it."""
        return self._thread.is_alive()

    def begin(self, job: bytes, total: int, on_ready: Callable[[CompilerProcess], None]) -> None:
        """Hand it its job, a line, without waiting for it.

        Args:
            total: variants that it must find.
            on_ready: told once that it compiles, or that it is lost and `compile` says so.
        """
        self._job.set_result(_Job(job, total, on_ready))

    def compile(self, index: int) -> str:
        """Have it compile a variant and wait; returns the hash, or nothing if that was not to be."""
        future: Future[Compiled | None] = Future()
        with self._lock:
            if self._over:
                return ""
            self._waiting[index] = future
            self._send(b"%d\n" % index)
        try:
            word = future.result(KERNEL_LIMIT_S)
        except TimeoutError:
            self.end(f"did not compile variant {index} within {KERNEL_LIMIT_S:g} s")
            return ""
        if word is not None and word.error:  # others would fail alike, as where no cache can be written
            self.end(f"could not compile variant {index}: {word.error}")
        return "" if word is None else word.hash

    def end(self, reason: str) -> None:
        """End it for a reason that is logged."""
        with self._lock:
            self._reason = self._reason or reason
        self._process.kill()

    def close(self) -> None:
        """End it because nothing more is to be compiled."""
        with self._lock:
            self._over = True
        self._process.kill()
        if not self._job.done():
            self._job.set_result(None)

    def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None, "standard input is a pipe"
        with suppress(OSError):  # it has ended; `_live` finds out how
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def _live(self) -> None:
        """Tell it its job, hear what it says, and see to its end."""
        job = self._job.result()
        ready = False
        if job is not None:
            self._send(job.line)
            ready = self._hear(job)
        self._bury()
        if job is not None and not ready:
            job.on_ready(self)

    def _hear(self, job: _Job) -> bool:
        """Take in its words until there are no more; whether it was ready."""
        ready = False
        while (word := self._next_word()) is not None:
            if isinstance(word, Ready):
                if ready or word.kernels != job.total:
                    self.end(f"found {word.kernels} kernels where this process found {job.total}")
                    break
                ready = True
                job.on_ready(self)
            else:
                with self._lock:
                    future = self._waiting.pop(word.index, None)
                if future is None:
                    self.end(f"compiled variant {word.index} unasked")
                    break
                future.set_result(word)
        return ready

    def _next_word(self) -> Word | None:
        """What it says next; None if it ended, or must, because it says what cannot be read."""
        assert self._process.stdout is not None, "standard output is a pipe"
        line = self._process.stdout.readline(MAX_LINE_BYTES)
        if not line:
            return None
        try:
            return msgspec.json.decode(line, type=Word)
        except msgspec.DecodeError:
            self.end(f"said {line[:80]!r}, which is no word")
            return None

    def _bury(self) -> None:
        """Wait for its end, and log one that was not to be expected. Whoever waits for a variant is told."""
        try:
            status = self._process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self.end(f"was still there {_END_LIMIT_S:g} s after its last word")
            status = self._process.wait()
        with self._lock:
            expected = self._over and not self._reason
            self._over = True
            waiting, self._waiting = self._waiting, {}
        if not expected:
            reason = self._reason or f"ended with {status}"
            _log.warning(
                "a process that compiles kernels %s; this process does its share: %s", reason, self._last_output()
            )
        for future in waiting.values():
            future.set_result(None)
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None, "all three were given"
            with suppress(OSError):  # a word that it did not read
                stream.close()

    def _last_output(self) -> str:
        """The last that it wrote beside its words."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL_BYTES))
        return self._errors.read().decode("utf-8", "replace").strip() or "it left no message"


def _scratch_file() -> IO[bytes]:
    """What a process writes into without anybody reading along."""
    return tempfile.TemporaryFile()


@dataclass(frozen=True, slots=True)
class _Job:
    line: bytes
    total: int
    on_ready: Callable[[CompilerProcess], None]
