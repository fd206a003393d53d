"""`drivetrain serve` as a user starts it: the real engine process behind the real server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from fakes.waiting import LIMIT_S, until

START_LIMIT_S = 120.0
MAIN = "from drivetrain_server.cli import main; main()"


class ServeProcess:
    """A server and its engine.

    Args:
        folder: where configuration and log are written.
        model: what is served, under `name`.
        config: the text of drivetrain.toml.
        program: what Python runs, with the command line in `sys.argv`.
        environment: further variables.
        python: the interpreter; this one if None.
        start_limit_s: how long it may take until it is ready.
    """

    def __init__(
        self,
        folder: Path,
        model: Path,
        config: str,
        *,
        name: str = "tiny",
        program: str = MAIN,
        environment: Mapping[str, str] | None = None,
        python: Path | None = None,
        start_limit_s: float = START_LIMIT_S,
    ) -> None:
        (folder / "drivetrain.toml").write_text(config)
        self.name = name
        self.start_limit_s = start_limit_s
        self.log = (folder / "serve.log").open("w+")
        arguments = ["serve", "--model", str(model), "--served-model-name", name, "--port", "0"]
        self.process = subprocess.Popen(
            [str(python or sys.executable), "-c", program, *arguments],
            cwd=folder,
            stdout=self.log,
            stderr=self.log,
            env=os.environ | dict(environment or {}),
        )
        self.http = httpx.Client(timeout=600)  # dozens of requests share two cores
        try:
            self.port = self._chosen_port()
        except BaseException:
            self.kill()
            raise
        self.url = f"http://127.0.0.1:{self.port}"
        self.http.base_url = self.url

    def __enter__(self) -> Self:
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.tail())
        self.kill()

    def _chosen_port(self) -> int:
        """The port that the system chose, as the server says it."""
        said: list[str] = []

        def listening() -> bool:
            ended = self.process.poll() is not None
            text = Path(self.log.name).read_text()
            said.extend(re.findall(r"^Listening on http://127\.0\.0\.1:(\d+);", text, re.MULTILINE))
            return bool(said) or ended

        until(listening, within_s=self.start_limit_s)
        assert said, self.tail()
        return int(said[0])

    def wait_ready(self) -> None:
        deadline = time.monotonic() + self.start_limit_s
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.tail()
            try:
                if self.http.get("/ready").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready within {self.start_limit_s:g} s\n{self.tail()}")

    def tail(self) -> str:
        self.log.flush()
        return Path(self.log.name).read_text()[-3000:]

    def metric(self, name: str) -> float:
        """The value of one line of `/metrics`, named with its labels."""
        for line in self.http.get("/metrics").text.splitlines():
            found, _, value = line.rpartition(" ")
            if found == name:
                return float(value)
        raise AssertionError(f"no metric {name}")

    def pages(self) -> dict[str, float]:
        """KV pages by state, and their capacity."""
        found: dict[str, float] = {}
        for line in self.http.get("/metrics").text.splitlines():
            if line.startswith("drivetrain_kv_pages"):
                name, value = line.rsplit(" ", 1)
                state = name.removeprefix("drivetrain_kv_pages").removeprefix("_").strip("{}").removeprefix("state=")
                found[state.strip('"')] = float(value)
        return found

    @property
    def num_open(self) -> int:
        """Requests that are being answered; told without asking the engine."""
        return httpx.get(f"{self.url}/ready", timeout=LIMIT_S).json()["open_requests"]

    @contextmanager
    def engine_held(self) -> Iterator[None]:
        """The engine process stands still, so that nothing that waits for it can end before the test has looked."""
        pid = self.engine_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with suppress(ProcessLookupError):  # the test may have killed it
                os.kill(pid, signal.SIGCONT)

    def kill_engine(self) -> None:
        """SIGKILL to the engine, and on return it has ended: whatever is found from then on is another one."""
        pid = self.engine_pid
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_running(pid))

    def assert_all_pages_back(self, capacity: int, *, within_s: float = LIMIT_S) -> None:
        deadline = time.monotonic() + within_s
        while True:
            pages = self.pages()
            if pages.get("used") == 0:
                break
            assert time.monotonic() < deadline, pages
            time.sleep(0.02)
        assert pages["free"] + pages["cached"] == pages["capacity"] == capacity

    def complete(self, **body: Any) -> dict[str, Any]:
        """The answer to a completion request that has to succeed."""
        answer = self.http.post("/v1/completions", json={"model": self.name, "temperature": 0} | body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    @property
    def engine_pid(self) -> int:
        """The process id of the engine."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                    command = (entry / "cmdline").read_bytes()
                except (FileNotFoundError, ProcessLookupError):
                    continue
                if int(fields[1]) == self.process.pid and b"drivetrain.process.worker" in command:
                    return int(entry.name)
        raise AssertionError("no engine process")

    def end(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(LIMIT_S)
        finally:
            self.kill()

    def kill(self) -> None:
        """End it at once, where it has not ended."""
        self.process.kill()
        self.process.wait()
        self.log.close()
        self.http.close()


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def sse_events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON events of a stream as they come; `iter_lines` would cut at line ends of Unicode inside the text."""
    rest = b""
    for part in answer.iter_bytes():
        *events, rest = (rest + part).split(b"\n\n")
        for event in events:
            if event.startswith(b"data: {"):
                yield json.loads(event[6:])
    if rest:
        yield json.loads(rest)  # an error in place of a stream
