"""Run other people's code in processes of their own, in parallel, each with a time limit; never raise because of it.

A child is a fresh interpreter (no fork of a process that may hold threads or a device, no pickle). It answers with one
line on a pipe of its own; whatever it prints elsewhere is kept as evidence and shown when it fails.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from drivetrain_plugins.child import BOOTSTRAP

MAX_ANSWER_BYTES = 1 << 20
MAX_OUTPUT_LINES = 12
MAX_OUTPUT_BYTES = 4096
ORPHAN_MARGIN_S = 5.0
IMPORT_MACHINERY = 'File "<frozen importlib'  # stack frames that would crowd out the plugin's own


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildCall:
    """One task for one child: "module:function", called with `argument`, which returns a JSON object."""

    task: str
    argument: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildOutcome:
    """How a call ended.

    Attributes:
        answer: the line of JSON, or None if there was none.
        failure: why there is no answer, a clause such as "was killed by SIGSEGV"; empty if there is one.
        output: the last lines that the child printed.
        seconds: from start to answer or end.
    """

    answer: bytes | None
    failure: str
    output: tuple[str, ...]
    seconds: float


def call_in_children(calls: Sequence[ChildCall], *, time_limit_s: float) -> list[ChildOutcome]:
    """Run every call in a child of its own, all at once, and give their outcomes in the order of `calls`.

    A child that has not answered after `time_limit_s` is killed with everything that it started.
    """
    children = [_Child(call, time_limit_s) for call in calls]
    try:
        _wait(children)
    finally:
        for child in children:
            child.end()
    return [child.outcome() for child in children]


def _wait(children: Sequence[_Child]) -> None:
    """Read from all children until each has finished or run out of time."""
    running = {child.answer_fd: child for child in children if not child.ended}
    with selectors.DefaultSelector() as selector:
        for answer_fd in running:
            selector.register(answer_fd, selectors.EVENT_READ)
        while running:
            deadline = min(child.deadline for child in running.values())
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                running[key.fd].read()
            now = time.monotonic()
            for answer_fd, child in list(running.items()):
                if child.finished or now >= child.deadline:
                    selector.unregister(answer_fd)
                    del running[answer_fd]
                    child.end()


@dataclass(slots=True)
class _Child:
    """A running child and what it has said so far."""

    call: ChildCall
    time_limit_s: float
    process: subprocess.Popen[bytes] | None = None
    answer_fd: int = -1
    started: float = 0.0
    deadline: float = 0.0
    received: bytearray = field(default_factory=bytearray)
    closed: bool = False
    ended: bool = False
    exit_code: int | None = None
    seconds: float = 0.0
    start_failure: str = ""
    output_file: IO[bytes] | None = None

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.deadline = self.started + self.time_limit_s
        try:
            self._start()
        except OSError as error:
            self.start_failure = f"could not be started: {error}"
            self.ended = True

    def _start(self) -> None:
        self.output_file = _scratch_file()
        self.answer_fd, child_fd = os.pipe()
        request = {
            "sys_path": [str(folder) for folder in sys.path],
            "task": self.call.task,
            "argument": self.call.argument,
            "answer_fd": child_fd,
            "alarm_s": self.time_limit_s + ORPHAN_MARGIN_S,
        }
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-X", "faulthandler", "-c", BOOTSTRAP, json.dumps(request)],
                stdin=subprocess.DEVNULL,
                stdout=self.output_file,
                stderr=subprocess.STDOUT,
                pass_fds=(child_fd,),
                start_new_session=True,
            )
        except OSError:
            os.close(self.answer_fd)
            self.output_file.close()
            raise
        finally:
            os.close(child_fd)

    @property
    def finished(self) -> bool:
        return self.closed or b"\n" in self.received or len(self.received) > MAX_ANSWER_BYTES

    def read(self) -> None:
        chunk = os.read(self.answer_fd, 1 << 16)
        self.received += chunk
        self.closed = not chunk

    def end(self) -> None:
        """Note how the child went, kill what is left of it, and release its files. Safe to call twice."""
        if self.ended or self.process is None:
            return
        self.ended = True
        self.seconds = time.monotonic() - self.started
        if self.closed and not self.received:
            try:  # it went without a word: its exit status tells why
                self.exit_code = self.process.wait(timeout=max(0.0, self.deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.exit_code = None
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            self.process.kill()  # the group is gone; macOS says EPERM of a group of zombies
        self.process.wait()
        os.close(self.answer_fd)

    def outcome(self) -> ChildOutcome:
        line, newline, _ = bytes(self.received).partition(b"\n")
        answered = bool(newline)
        return ChildOutcome(
            answer=line if answered else None,
            failure="" if answered else self._failure(),
            output=self._output(),
            seconds=self.seconds,
        )

    def _failure(self) -> str:
        if self.start_failure:
            return self.start_failure
        if len(self.received) > MAX_ANSWER_BYTES:
            return f"answered with more than {MAX_ANSWER_BYTES} bytes"
        if self.received:
            return f"broke off in the middle of its answer: {bytes(self.received[:60])!r}"
        if not self.closed:
            return f"did not answer within {self.time_limit_s:g} s"
        if self.exit_code is None:
            return f"closed its pipe without an answer and was still there after {self.time_limit_s:g} s"
        if self.exit_code < 0:
            return f"was killed by {_signal_name(-self.exit_code)}"
        return f"exited with code {self.exit_code} before it answered"

    def _output(self) -> tuple[str, ...]:
        if self.output_file is None or self.output_file.closed:
            return ()
        with self.output_file as output:
            size = output.seek(0, os.SEEK_END)
            output.seek(max(0, size - MAX_OUTPUT_BYTES))
            text = output.read().decode("utf-8", "replace")
        lines = (line.rstrip() for line in text.splitlines())
        return tuple(line for line in lines if line and IMPORT_MACHINERY not in line)[-MAX_OUTPUT_LINES:]


def _scratch_file() -> IO[bytes]:
    """A file in memory where the system has such, because a container's root may be read-only; else a temporary one."""
    if sys.platform == "linux":
        return open(os.memfd_create("drivetrain-child-output"), "w+b")
    return tempfile.TemporaryFile()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
