"""Processes that compile kernels: when they are started, how work is shared, and what becomes of it if they fail."""

from __future__ import annotations

import json
import logging
import pwd
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from device_parts import startup
from drivetrain_plugins.import_string import import_object
from drivetrain_triton.device import compilers
from drivetrain_triton.device.compilers import (
    CompilerProcess,
    Compilers,
    begin_compilers,
    cache_folder,
    num_processes,
)
from drivetrain_triton.device.compilers import taken_compilers as taken
from fakes.compile_process import BOOTSTRAP
from fakes.fresh_python import printed_by
from fakes.waiting import LIMIT_S, until

TOTAL = 12
PLENTY = 64 << 30
"""Bytes of free memory."""


class Work:
    """Variants that are compiled by processes and, counted, here."""

    def __init__(self, listing: str, *, processes: int = 2, job: bytes = b"") -> None:
        self.compilers = Compilers(listing, processes)
        self.job = job or json.dumps({"kernels": TOTAL}).encode() + b"\n"
        self.loaded: list[int] = []

    def run(self) -> None:
        """Compile everything and see that nothing is left of the processes."""
        with ThreadPoolExecutor(self.compilers.begin(self.job, TOTAL, threads=1)) as pool:
            list(pool.map(lambda index: self.compilers.compile(index, lambda: self._here(index)), range(TOTAL)))
        until(lambda: not self.compilers.alive)
        assert sorted(self.loaded) == list(range(TOTAL)), "each is loaded here once, whoever compiled it"

    def _here(self, index: int) -> str:
        self.loaded.append(index)
        return f"hash {index}"


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that need no torch; and this one compiles only what they fail to."""
    monkeypatch.setattr(compilers, "BOOTSTRAP", BOOTSTRAP)
    monkeypatch.setattr(compilers, "LEAST_THREADS", 0)
    monkeypatch.setattr(compilers, "_END_LIMIT_S", LIMIT_S)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[int, str]]:
    """What processes made of each variant: its hash, or nothing."""
    answers: dict[int, str] = {}
    ask = CompilerProcess.compile

    def compile_and_note(process: CompilerProcess, index: int) -> str:
        assert index not in answers, "no variant is given to two processes"
        answers[index] = ask(process, index)
        return answers[index]

    monkeypatch.setattr(CompilerProcess, "compile", compile_and_note)
    yield answers


def test_processes_compile_everything_and_go(asked: dict[int, str], caplog: pytest.LogCaptureFixture) -> None:
    work = Work("works")
    work.run()
    assert work.compilers.num_compiled == TOTAL
    assert asked == {index: f"hash {index}" for index in range(TOTAL)}
    assert not caplog.records


@pytest.mark.parametrize(
    ("listing", "warning"),
    [
        ("rubbish", "said b'Loading kernels\\n', which is no word"),
        ("miscounts", "found 13 kernels where this process found 12"),
        ("dies", "ended with 7; this process does its share: out of memory"),
        ("strays", "unasked"),
        ("refuses", ": ValueError: no; this process does its share"),
        ("differs", "as other"),
        ("hangs", "within 0.2 s"),
    ],
)
def test_what_processes_fail_to_do_is_done_here_and_told(
    listing: str, warning: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if listing == "hangs":
        monkeypatch.setattr(compilers, "KERNEL_LIMIT_S", 0.2)
    Work(listing, processes=1).run()
    assert warning in caplog.text
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "told once, not for each kernel"


def test_one_that_is_killed_in_the_middle_leaves_the_rest_to_this_process(
    asked: dict[int, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compilers, "LANES", 1)
    work = Work("works", processes=1)
    ask = CompilerProcess.compile

    def kill_after_five(process: CompilerProcess, index: int) -> str:
        if len(asked) == 5:
            process._process.kill()
        return ask(process, index)

    monkeypatch.setattr(CompilerProcess, "compile", kill_after_five)
    work.run()
    assert sorted(map(bool, asked.values())) == [False, *[True] * 5], "then nobody asks it any more"
    assert work.compilers.num_compiled == 5
    assert "ended with -9; this process does its share: it left no message" in caplog.text


def test_nobody_waits_for_a_process_that_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compilers, "LEAST_THREADS", 1)
    # More than a pipe takes while nobody reads.
    Work("deaf", job=json.dumps({"kernels": TOTAL, "more": "x" * (1 << 18)}).encode() + b"\n").run()
    assert not caplog.records, "they are not needed, and that is no fault"


def test_a_kernel_that_does_not_compile_here_either_fails_and_holds_up_nothing() -> None:
    work = Work("refuses", processes=1)
    work.compilers.begin(work.job, TOTAL, threads=1)

    def fail() -> str:
        raise RuntimeError("no such instruction")

    for index in range(TOTAL):
        with pytest.raises(RuntimeError, match="no such instruction"):
            work.compilers.compile(index, fail)
    until(lambda: not work.compilers.alive)


@pytest.mark.parametrize(("threads", "here"), [(15, 9), (9, 3), (5, 3)])
def test_as_many_are_compiled_at_once_as_by_threads_alone_or_a_few_more(
    threads: int, here: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilers, "LEAST_THREADS", 3)
    work = Work("works", processes=3)
    assert work.compilers.begin(work.job, TOTAL, threads) == here + 2 * 3 * compilers.LANES
    work.compilers.close()
    until(lambda: not work.compilers.alive)


class TestBeginning:
    @pytest.fixture(autouse=True)
    def empty_cache(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setattr(compilers, "usable_cores", lambda: 8)
        monkeypatch.setattr(compilers, "available_memory_bytes", lambda: PLENTY)

    def test_an_empty_cache_and_processors_to_spare_are_worth_processes(self) -> None:
        begin_compilers("works")
        begun = taken()
        assert begun is not None
        assert begun.alive == 2
        assert taken() is None, "they help with one model"
        begun.close()
        until(lambda: not begun.alive)

    def test_those_of_a_device_that_was_never_opened_end(self, caplog: pytest.LogCaptureFixture) -> None:
        end = begin_compilers("works")
        begun = compilers._begun.get()
        assert begun is not None
        end()
        end()
        until(lambda: not begun.alive)
        assert not caplog.records

    def test_those_that_ended_are_not_taken_by_the_next_engine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        begin_compilers("works")()
        monkeypatch.setattr(compilers, "usable_cores", lambda: 1)
        begin_compilers("works")()
        assert taken() is None

    def test_a_container_with_little_memory_starts_fewer_or_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compilers, "available_memory_bytes", lambda: (4 << 30) - 1)
        end = begin_compilers("works")
        begun = taken()
        assert begun is not None
        assert begun.alive == 1
        end()
        until(lambda: not begun.alive)
        monkeypatch.setattr(compilers, "available_memory_bytes", lambda: (2 << 30) - 1)
        begin_compilers("works")()
        assert taken() is None

    def test_a_cache_with_a_kernel_starts_none(self, tmp_path: Path) -> None:
        (tmp_path / "ABC").mkdir()
        (tmp_path / "ABC" / "__grp__decode_kernel.json").write_text("{}")
        begin_compilers("works")
        assert taken() is None

    def test_few_processors_start_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(compilers, "usable_cores", lambda: 5)
        begin_compilers("works")
        assert taken() is None

    def test_a_system_that_starts_none_is_told_and_no_obstacle(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        start, started = subprocess.Popen, []

        def popen(*args: object, **options: object) -> object:
            if started:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            started.append(start(*args, **options))  # type: ignore[call-overload]
            return started[0]

        monkeypatch.setattr(compilers.subprocess, "Popen", popen)
        begin_compilers("works")
        assert taken() is None
        assert "no processes that compile kernels can be started, so the start takes longer" in caplog.text
        until(lambda: started[0].poll() is not None)

    def test_a_system_that_starts_no_more_threads_is_told_and_keeps_no_process(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        started = []

        def popen(*args: object, **options: object) -> object:
            started.append(subprocess.Popen(*args, **options))  # type: ignore[call-overload]
            return started[-1]

        def refuse(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(compilers, "subprocess", SimpleNamespace(**vars(subprocess) | {"Popen": popen}))
        monkeypatch.setattr(threading.Thread, "start", refuse)
        begin_compilers("deaf")
        assert taken() is None
        (told,) = caplog.messages
        assert told.endswith("so the start takes longer: can't start new thread")
        assert [process.poll() for process in started] == [-9]


@pytest.mark.parametrize(("processors", "expected"), [(1, 0), (5, 0), (6, 2), (9, 3), (16, 5), (128, 5)])
def test_the_number_of_processes_follows_the_processors(processors: int, expected: int, tmp_path: Path) -> None:
    assert num_processes({"TRITON_CACHE_DIR": str(tmp_path / "none yet")}, processors, PLENTY) == expected


@pytest.mark.parametrize("variable", ["TRITON_INTERPRET", "TRITON_ALWAYS_COMPILE", "TRITON_CACHE_MANAGER"])
def test_none_where_triton_would_not_find_their_work(variable: str, tmp_path: Path) -> None:
    assert num_processes({"TRITON_CACHE_DIR": str(tmp_path), variable: "1"}, 16, PLENTY) == 0


def test_the_cache_is_where_triton_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = tmp_path / ".triton" / "cache" / "ABC"
    kernel.mkdir(parents=True)
    (kernel / "cuda_utils.so").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert num_processes({}, 16, PLENTY) == 5, "its module for the driver is no kernel"
    (kernel / "__grp__norm_kernel.json").touch()
    assert num_processes({}, 16, PLENTY) == 0
    assert num_processes({"TRITON_HOME": str(tmp_path)}, 16, PLENTY) == 0
    assert num_processes({"TRITON_HOME": str(tmp_path / "elsewhere")}, 16, PLENTY) == 5


def test_a_user_without_a_home_has_the_cache_where_triton_puts_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: int) -> object:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert cache_folder({}) == Path("~/.triton/cache")


def test_a_process_imports_nothing_from_the_folder_that_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a file of that name lay here')\n")
    monkeypatch.chdir(tmp_path)
    work = Work("works")
    work.run()
    assert work.compilers.num_compiled == TOTAL
    assert not caplog.records


def test_a_measured_start_by_threads_alone_has_no_processes(tmp_path: Path) -> None:
    startup._seem_to_hold_a_kernel(tmp_path / "cache")
    assert num_processes({"TRITON_CACHE_DIR": str(tmp_path / "cache")}, 16, PLENTY) == 0


@pytest.mark.parametrize("package", ["drivetrain_cuda", "drivetrain_rocm"])
def test_a_backend_begins_them_before_torch_is_there(package: str) -> None:
    (spec,) = import_object(f"{package}.plugin:drivetrain_backends")()  # type: ignore[operator]
    assert spec.early == f"{package}.early:begin"
    program = (
        "import sys\n"
        f"from {package}.early import begin\n"
        "from drivetrain_triton.device import compilers\n"
        "begun = []\n"
        "compilers.num_processes = lambda *_: 1\n"
        "class Compilers:\n"
        "    def __init__(self, *args): begun.append(args)\n"
        "    def close(self): begun.append('ended')\n"
        "compilers.Compilers = Compilers\n"
        "begin()()\n"
        "print(begun, sorted({'torch', 'triton'} & set(sys.modules)))\n"
    )
    assert printed_by(program) == f"[('{package}.variants:kernel_variants', 1), 'ended'] []\n"
