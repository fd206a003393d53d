"""The real `serve` in a process of its own: what it says, and how signals end it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from drivetrain.config.engine import EngineConfig
from drivetrain.config.server import ServerConfig
from drivetrain.errors import ConfigError
from drivetrain_server.serve import bind, serve
from fakes.engine import FakeEngine
from fakes.server import RunningServer, frontend_factory
from fakes.waiting import LIMIT_S

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True}


@contextmanager
def _process(drain_s: float, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A serving process and its address."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    process = subprocess.Popen(
        [sys.executable, "-m", "fakes.serve_main", str(drain_s), *options],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        listening = process.stdout.readline()
        address = re.match(r"Listening on (http://127\.0\.0\.1:\d+);", listening)
        assert address is not None, listening
        if "stuck" not in options:
            assert process.stdout.readline() == f"Ready: tiny at {address[1]}/v1\n"
            assert process.stdout.readline().startswith(f"Try:   curl {address[1]}/v1/chat/completions")
        yield process, address[1]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(("drain_s", "signals"), [(0.2, 1), (600.0, 2)], ids=["drain time is over", "second signal"])
def test_signal_ends_running_streams_with_an_error_event(drain_s: float, signals: int) -> None:
    with _process(drain_s) as (process, address):
        assert process.stdout is not None
        with httpx.stream("POST", f"{address}/v1/chat/completions", json=CHAT, timeout=LIMIT_S) as answer:
            lines = answer.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline().startswith("Ending: running requests have")
            if signals == 2:
                assert httpx.get(f"{address}/ready").json()["status"] == "draining"
                process.send_signal(signal.SIGINT)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "draining"
        assert process.stdout.readline() == "shut down: True, aborted: 1\n"
        assert process.wait(LIMIT_S) == 0


@pytest.mark.parametrize("options", [(), ("stuck",)], ids=["idle", "starting"])
def test_server_without_requests_ends_at_once(options: tuple[str, ...]) -> None:
    with _process(600.0, *options) as (process, address):
        assert httpx.get(f"{address}/health").status_code == 200
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 0


def test_taken_port_is_a_config_error_that_names_it() -> None:
    with RunningServer(FakeEngine()) as server, pytest.raises(ConfigError, match=f"port {server.port}: .*in use"):
        bind(ServerConfig(port=server.port))


def test_engine_that_cannot_start_ends_the_server_with_its_error() -> None:
    engine = FakeEngine()
    engine.start_error = ConfigError("model: no such folder")
    with pytest.raises(ConfigError, match="no such folder"):
        serve(
            EngineConfig(model="tiny"),
            ServerConfig(port=0),
            engine_factory=lambda config: engine,
            frontend_factory=frontend_factory,
            announce=lambda text: None,
        )
    assert engine.was_shut_down
