"""Signals and kills under load: every client is answered, pages come back, nothing is left behind."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from fakes.serve_process import ServeProcess, sse_events

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
        self.ended_s = 0.0
        self.error: Exception | None = None
        self._url = f"{server.url}/v1/completions"
        self._body = STREAM | {"max_tokens": max_tokens} | body
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            with httpx.stream("POST", self._url, json=self._body, timeout=60) as answer:
                self.status = answer.status_code
                for event in sse_events(answer):
                    self.events.append(event)
                    self.begun.set()
        except httpx.HTTPError as error:
            self.error = error
        self.ended_s = time.monotonic()
        self.begun.set()

    def wait(self) -> None:
        self.thread.join(60)
        assert not self.thread.is_alive()
        assert self.error is None, self.error

    @property
    def error_code(self) -> str | None:
        return self.events[-1]["error"]["code"] if "error" in self.events[-1] else None

    @property
    def finish_reason(self) -> str | None:
        return self.events[-1]["choices"][0]["finish_reason"]


def start(folder: Path, model: Path, *, drain_s: float = 30.0) -> ServeProcess:
    return ServeProcess(folder, model, CONFIG.format(drain_s=drain_s))


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
        streams = [Stream(server, 300) for _ in range(30)]
        _until(lambda: server.metric("drivetrain_requests_waiting") == 10)
        for pid in (server.engine_pid, server.process.pid):  # as a service manager does
            os.kill(pid, signal.SIGTERM)
        _until(lambda: server.http.get("/ready").json()["status"] == "draining")
        refused = server.http.post("/v1/completions", json=STREAM | {"max_tokens": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        engine = server.engine_pid
        for stream in streams:
            stream.wait()
            assert (stream.status, stream.finish_reason) == (200, "length")
        assert server.process.wait(20) == 0, server.tail()
        assert not _alive(engine)


def test_second_signal_ends_everything_with_an_error_event(tiny_model: Path, tmp_path: Path) -> None:
    with start(tmp_path, tiny_model, drain_s=60.0) as server:
        streams = [Stream(server, 2000) for _ in range(24)]
        assert streams[0].begun.wait(20)
        engine = server.engine_pid
        server.process.send_signal(signal.SIGTERM)
        _until(lambda: server.http.get("/ready").json()["status"] == "draining")
        server.process.send_signal(signal.SIGTERM)
        begun = time.monotonic()
        assert server.process.wait(15) == 0, server.tail()
        assert time.monotonic() - begun < 8
        for stream in streams:
            stream.wait()
            assert stream.status in (200, 503)
            assert stream.error_code == "draining"
        assert not _alive(engine)


def test_signal_while_the_engine_starts_ends_both_at_once(tiny_model: Path, tmp_path: Path) -> None:
    server = start(tmp_path, tiny_model)
    try:
        _until(lambda: _engine(server) is not None)
        engine = server.engine_pid
        _until(lambda: "Listening on" in server.tail())
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 0
        assert not _alive(engine)
    finally:
        server.kill()


def test_killed_server_takes_its_engine_with_it(tiny_model: Path, tmp_path: Path) -> None:
    with start(tmp_path, tiny_model) as server:
        stream = Stream(server, 2000)
        assert stream.begun.wait(20)
        engine = server.engine_pid
        server.process.kill()
        _until(lambda: not _alive(engine), within_s=5)
        stream.thread.join(10)
        assert stream.error is not None


def test_killed_engine_is_told_to_all_and_gives_up_after_several(tiny_model: Path, tmp_path: Path) -> None:
    with start(tmp_path, tiny_model) as server, ThreadPoolExecutor(20) as pool:
        running = [Stream(server, 2000) for _ in range(20)]
        for stream in running:
            assert stream.begun.wait(20)
        queued = [pool.submit(_whole, server, index) for index in range(20)]
        _until(lambda: server.metric("drivetrain_requests_waiting") == 20)
        os.kill(server.engine_pid, signal.SIGKILL)
        killed = time.monotonic()
        for stream in running:
            stream.wait()
            assert stream.ended_s - killed < 3
            assert stream.error_code == "engine_dead"
        during = server.http.post("/v1/completions", json=STREAM | {"max_tokens": 1})
        assert during.status_code == 503
        assert "retry-after" in during.headers
        assert server.http.get("/ready").status_code == 503
        assert server.http.get("/health").status_code == 200
        _check_served(queued)
        server.wait_ready()
        server.assert_all_pages_back(2999)

        # From here on no engine lives long enough to become ready.
        waiting = Stream(server, 2000)
        assert waiting.begun.wait(20)
        last = 0
        while server.http.get("/health").status_code == 200:
            pid = _engine(server)
            if pid is not None and pid != last:
                last = pid
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)
        waiting.wait()
        ready = server.http.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "failed")
        assert "SIGKILL" in ready.json()["reason"]
        refused = server.http.post("/v1/completions", json=STREAM | {"max_tokens": 1})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_dead")
        assert server.http.get("/metrics").status_code == 200
        assert _engine(server) is None
        assert server.end() == 0


def _check_served(queued: list[Future[tuple[int, dict[str, Any]]]]) -> None:
    for future in queued:
        status, answer = future.result(60)
        assert status == 200, answer
        assert answer["usage"]["completion_tokens"] == 8


def _whole(server: ServeProcess, index: int) -> tuple[int, dict[str, Any]]:
    body = {"model": "tiny", "prompt": f"Question {index}", "max_tokens": 8, "ignore_eos": True, "temperature": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
    return answer.status_code, answer.json()


def _engine(server: ServeProcess) -> int | None:
    try:
        return server.engine_pid
    except AssertionError:
        return None


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(condition: Any, *, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
