"""What streaming costs the API process a token: many open streams, one token an event and step, no model.

    python bench/stream_cost.py [--streams 1 64 256 1024] [--rate 60000] [--seconds 8] [--behind]

Processes: an engine by the clock (bench/stream_engine.py), the server (bench/stream_server.py) with the quick-start
model's tokenizer, one that reads every stream and counts events, and this one. Reported: tokens a second of the
server's own processor time (user and system, from /proc), tokens an event, and the time to the first token of single
requests sent while the streams run. `--behind` lets the engine run ahead of the server, so that events carry several
tokens: that figure stands apart.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def open_stream(port: int, route: str, max_tokens: int) -> socket.socket:
    asked: dict[str, object] = {"model": "clock", "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    asked |= {"messages": [{"role": "user", "content": "Go on."}]} if "chat" in route else {"prompt": [5, 6, 7]}
    body = json.dumps(asked).encode()
    connection = socket.create_connection(("127.0.0.1", port))
    head = f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    head += "Content-Type: application/json\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


class Readers:
    """A process that reads every open stream and counts events."""

    def __init__(self, connections: list[socket.socket]) -> None:
        context = multiprocessing.get_context("fork")
        self._num_events = context.Value("Q", 0, lock=False)
        self._process = context.Process(target=self._read, args=(connections,), daemon=True)
        self._process.start()

    @property
    def num_events(self) -> int:
        return self._num_events.value

    def end(self) -> None:
        self._process.kill()
        self._process.join()

    def _read(self, connections: list[socket.socket]) -> None:
        selector = selectors.DefaultSelector()
        for connection in connections:
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                data = key.fileobj.recv(1 << 18)  # type: ignore[union-attr]
                if not data:
                    return
                self._num_events.value += data.count(b'"finish_reason":null')
            # Like many clients: the server does not pay for each wake-up of this one.
            time.sleep(0.001)


def first_token_s(port: int, route: str) -> float:
    """Time to the first text of one more request, which then ends."""
    started = time.perf_counter()
    with open_stream(port, route, 2) as connection:
        seen = connection.recv(1 << 16)
        while b"finish_reason" not in seen:
            seen += connection.recv(1 << 16)
        found = time.perf_counter() - started
        while b"[DONE]" not in seen:
            seen += connection.recv(1 << 16)
    return found


def measure(streams: int, *, step_ms: float, seconds: float, route: str, behind: bool) -> dict[str, float]:
    step_ms = 0.0 if behind else step_ms
    with tempfile.TemporaryDirectory() as folder:
        path, port = str(Path(folder) / "engine.sock"), free_port()
        command = [sys.executable, str(HERE / "stream_engine.py"), path, "--step-ms", str(step_ms)]
        engine = subprocess.Popen([*command, *(["--ahead"] if behind else [])], stdin=subprocess.PIPE)
        command = [sys.executable, str(HERE / "stream_server.py"), path, str(port)]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        readers: Readers | None = None
        try:
            assert server.stderr is not None
            while not server.stderr.readline().startswith("Ready"):
                pass
            readers = Readers([open_stream(port, route, 1 << 19) for _ in range(streams)])
            time.sleep(1.5)
            before = Reading(port, server.pid, readers)
            time.sleep(seconds)
            after = Reading(port, server.pid, readers)
            firsts = sorted(first_token_s(port, route) for _ in range(40))
        finally:
            if readers is not None:
                readers.end()
            for process in (server, engine):
                process.kill()
                process.wait()
    tokens, events = (after.steps - before.steps) * streams, after.events - before.events
    elapsed, used_s = after.at - before.at, after.cpu_s - before.cpu_s
    return {
        "streams": streams,
        "step_ms": round(step_ms, 2),
        "tokens_per_s": round(tokens / elapsed),
        "tokens_per_core_s": round(tokens / used_s),
        "us_per_token": round(used_s / tokens * 1e6, 2),
        "busy": round(used_s / elapsed, 3),
        "tokens_per_event": round(tokens / events, 3),
        "first_token_ms_p50": round(firsts[len(firsts) // 2] * 1e3, 2),
        "first_token_ms_p95": round(firsts[int(len(firsts) * 0.95)] * 1e3, 2),
    }


class Reading:
    """Every counter at one moment."""

    def __init__(self, port: int, pid: int, readers: Readers) -> None:
        self.steps = _steps(port)
        self.events = readers.num_events
        self.cpu_s = cpu_s(pid)
        self.at = time.perf_counter()


def _steps(port: int) -> int:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        text = b""
        while part := connection.recv(1 << 16):
            text += part
    return int(float(text.split(b"\ndrivetrain_steps_total ")[1].split()[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 64, 256, 1024])
    parser.add_argument("--rate", type=float, default=60_000, help="tokens a second over all streams")
    parser.add_argument("--step-ms", type=float, help="time of a step, instead of --rate")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--route", default="/v1/chat/completions")
    parser.add_argument("--behind", action="store_true", help="the engine does not wait for the server")
    arguments = parser.parse_args()
    for streams in arguments.streams:
        found = measure(
            streams,
            step_ms=arguments.step_ms or max(streams / arguments.rate * 1e3, 2.0),
            seconds=arguments.seconds,
            route=arguments.route,
            behind=arguments.behind,
        )
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
