"""Signals and kills under load: every client is answered, pages come back, nothing is left behind."""

from __future__ import annotations

import os
import signal
import stat
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from fakes.serve_process import ServeProcess, is_running, sse_events
from fakes.waiting import LIMIT_S, until

CONFIG = """
dtype = "float32"

[limits]
max_num_seqs = 20
max_step_tokens = 128
max_model_len = 2048
num_pages = 3000

[server]
drain_s = {drain_s}

[backend_options.cpu]
threads = 1
"""
STREAM = {"model": "tiny", "prompt": "Count:", "stream": True, "ignore_eos": True}


class Stream:
    """One streamed completion, read in a thread of its own."""

    def __init__(self, server: ServeProcess, max_tokens: int, **body: Any) -> None:
        self.status = 0
        self.events: list[dict[str, Any]] = []
        self.begun = threading.Event()
        self.error: Exception | None = None
        self._url = f"{server.url}/v1/completions"
        self._body = STREAM | {"max_tokens": max_tokens} | body
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            with httpx.stream("POST", self._url, json=self._body, timeout=LIMIT_S) as answer:
                self.status = answer.status_code
                for event in sse_events(answer):
                    self.events.append(event)
                    self.begun.set()
        except httpx.HTTPError as error:
            self.error = error
        self.begun.set()

    def wait(self) -> None:
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()
        assert self.error is None, self.error

    @property
    def error_code(self) -> str | None:
        return self.events[-1]["error"]["code"] if "error" in self.events[-1] else None

    @property
    def finish_reason(self) -> str | None:
        return self.events[-1]["choices"][0]["finish_reason"]


def start(folder: Path, model: Path, *, drain_s: float = 300.0) -> ServeProcess:
    return ServeProcess(folder, model, CONFIG.format(drain_s=drain_s))


def accepted(server: ServeProcess, count: int, max_tokens: int) -> list[Stream]:
    """So many streams, all of them accepted before any could end, and the first of them under way."""
    with server.engine_held():
        streams = [Stream(server, max_tokens) for _ in range(count)]
        until(lambda: server.num_open == count)
    assert streams[0].begun.wait(LIMIT_S)
    return streams


def test_only_http_listens_and_the_engine_socket_is_private(tiny_server: ServeProcess) -> None:
    pids = (tiny_server.process.pid, tiny_server.engine_pid)
    assert [port for pid in pids for port in _listening(pid)] == [tiny_server.port]
    command = Path(f"/proc/{tiny_server.engine_pid}/cmdline").read_bytes().split(b"\0")
    path = Path(next(part for part in command if part.endswith(b".sock")).decode())
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert path.parent.stat().st_uid == os.getuid()


def _listening(pid: int) -> list[int]:
    """TCP and UDP ports on which sockets of a process accept what comes."""
    inodes: set[str] = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except FileNotFoundError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    ports: list[int] = []
    for table, state in (("tcp", "0A"), ("tcp6", "0A"), ("udp", "07"), ("udp6", "07")):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == state and fields[9] in inodes:
                ports.append(int(fields[1].rpartition(":")[2], 16))
    return ports


def test_sigterm_under_load_finishes_what_runs_and_refuses_what_comes(tiny_model: Path, tmp_path: Path) -> None:
    with start(tmp_path, tiny_model) as server:
        streams = accepted(server, 30, max_tokens=300)
        engine = server.engine_pid
        with server.engine_held():
            for pid in (engine, server.process.pid):  # as a service manager does
                os.kill(pid, signal.SIGTERM)
            until(lambda: server.http.get("/ready").json()["status"] == "draining")
            refused = server.http.post("/v1/completions", json=STREAM | {"max_tokens": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        for stream in streams:
            stream.wait()
            assert (stream.status, stream.finish_reason) == (200, "length")
        assert server.process.wait(LIMIT_S) == 0, server.tail()
        assert not is_running(engine)


def test_second_signal_ends_everything_with_an_error_event(tiny_model: Path, tmp_path: Path) -> None:
    with start(tmp_path, tiny_model) as server:
        streams = accepted(server, 24, max_tokens=2000)
        engine = server.engine_pid
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.http.get("/ready").json()["status"] == "draining")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(LIMIT_S) == 0, server.tail()  # and not only after the 300 s of a drain
        for stream in streams:
            stream.wait()
            assert (stream.status, stream.error_code) in ((200, "draining"), (503, "draining"))
        assert not is_running(engine)


def test_signal_while_the_engine_starts_ends_both_at_once(tiny_model: Path, tmp_path: Path) -> None:
    server = start(tmp_path, tiny_model)
    try:
        until(lambda: _engine(server) is not None)
        engine = server.engine_pid
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(LIMIT_S) == 0
        assert not is_running(engine)
    finally:
        server.kill()


def test_killed_server_takes_its_engine_with_it(tiny_model: Path, tmp_path: Path) -> None:
    with start(tmp_path, tiny_model) as server:
        [stream] = accepted(server, 1, max_tokens=2000)
        engine = server.engine_pid
        server.process.kill()
        until(lambda: not is_running(engine))
        stream.thread.join(LIMIT_S)
        assert stream.error is not None


def test_killed_engine_is_told_to_all_and_gives_up_after_several(tiny_model: Path, tmp_path: Path) -> None:
    with start(tmp_path, tiny_model) as server, ThreadPoolExecutor(20) as pool:
        running = accepted(server, 20, max_tokens=2000)
        for stream in running:
            assert stream.begun.wait(LIMIT_S)
        with server.engine_held():
            queued = [pool.submit(_whole, server, index) for index in range(20)]
            until(lambda: server.num_open == 40)
            server.kill_engine()
            for stream in running:
                stream.wait()
                assert stream.error_code == "engine_dead"
        _check_served(queued)
        server.wait_ready()
        server.assert_all_pages_back(2999)

        # From here on no engine lives long enough to become ready.
        [waiting] = accepted(server, 1, max_tokens=2000)
        server.kill_engine()
        _check_between_engines(server)
        until(lambda: _killed(server) and server.http.get("/health").status_code != 200)
        waiting.wait()
        ready = server.http.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "failed")
        assert "SIGKILL" in ready.json()["reason"]
        refused = server.http.post("/v1/completions", json=STREAM | {"max_tokens": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
        assert server.http.get("/metrics").status_code == 200
        assert _engine(server) is None
        assert server.end() == 0


def _check_between_engines(server: ServeProcess) -> None:
    """What is told while an engine starts, which is held at that."""
    until(lambda: _engine(server) is not None)
    with server.engine_held():
        assert server.http.get("/ready").json()["status"] == "starting"
        during = server.http.post("/v1/completions", json=STREAM | {"max_tokens": 1})
        assert (during.status_code, during.json()["error"]["code"]) == (503, "starting")
        assert 1 <= int(during.headers["retry-after"]) <= 120
        assert server.http.get("/health").status_code == 200


def _killed(server: ServeProcess) -> bool:
    """Kill an engine where there is one."""
    if _engine(server) is not None:
        server.kill_engine()
    return True


def _check_served(queued: list[Future[tuple[int, dict[str, Any]]]]) -> None:
    for future in queued:
        status, answer = future.result(LIMIT_S)
        assert status == 200, answer
        assert answer["usage"]["completion_tokens"] == 8


def _whole(server: ServeProcess, index: int) -> tuple[int, dict[str, Any]]:
    body = {"model": "tiny", "prompt": f"Question {index}", "max_tokens": 8, "ignore_eos": True, "temperature": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=LIMIT_S)
    return answer.status_code, answer.json()


def _engine(server: ServeProcess) -> int | None:
    try:
        return server.engine_pid
    except AssertionError:
        return None
