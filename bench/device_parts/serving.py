"""`drivetrain serve` in a process of its own, with random or real weights and the compile caches in a given folder."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from device_parts.folders import dummy_folder
from device_parts.settings import Settings

DRIVETRAIN = (sys.executable, "-c", "from drivetrain_server.cli import main; main()")
MODEL = "bench"
START_LIMIT_S = 300.0
CACHE_VARIABLES = (
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "CUDA_CACHE_PATH",
    "TORCH_EXTENSIONS_DIR",
    "XDG_CACHE_HOME",
)
"""Where Triton, torch's compiler, the CUDA driver, torch's extensions and everyone else keep what they compiled."""


class Server:
    """A server and its engine; `with` ends both.

    Args:
        caches: an empty folder makes a cold start; None keeps the machine's own caches.
        model: a model's file or folder; None is the model of these parts, with random weights.
        limits: further fields of `EngineConfig` that have a flag.
    """

    def __init__(
        self, settings: Settings, *, caches: Path | None = None, model: str | None = None, **limits: Any
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        folder = settings.folder("server")
        options = settings.engine.get("backend_options", {})
        (folder / "drivetrain.toml").write_text(_toml(options), encoding="utf-8")
        fields: dict[str, Any] = {
            "model": model or dummy_folder(settings, settings.http_model),
            "served_model_name": MODEL,
            "port": self.port,
            "backend": settings.backend,
            "load_format": "auto" if model else "dummy",
            "dtype": "bfloat16",
            "max_num_seqs": 8 if settings.tiny else 512,
            "max_model_len": 512 if settings.tiny else 8192,
        }
        fields |= limits | {name: value for name, value in settings.engine.items() if name != "backend_options"}
        command = [*DRIVETRAIN, "serve"]
        for name, value in fields.items():
            command += [f"--{name.replace('_', '-')}", str(value)]
        environment = {} if caches is None else {name: str(caches / name.lower()) for name in CACHE_VARIABLES}
        self._log_path = folder / "serve.log"
        self._log = self._log_path.open("w", encoding="utf-8")
        self.spawned = time.perf_counter()
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=self._log, stderr=self._log, env=os.environ | environment
        )
        self.phases: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.tail(), flush=True)
        self.end()

    def wait_ready(self, *, period_s: float = 0.02) -> float:
        """Seconds from the start of the process until it is ready."""
        while time.perf_counter() - self.spawned < START_LIMIT_S:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode} while starting:\n{self.tail()}")
            try:
                status, body = self.get("/ready")
            except OSError:
                status, body = 0, b""
            if body:
                self.phases = json.loads(body).get("phases", self.phases)
            if status == 200:
                return time.perf_counter() - self.spawned
            time.sleep(period_s)
        raise RuntimeError(f"the server was not ready within {START_LIMIT_S:g} s:\n{self.tail()}")

    def get(self, route: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        return self._ask("GET", route, None, timeout_s=10)

    def post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request that has to succeed."""
        status, answer = self._ask("POST", route, json.dumps(body), timeout_s=120)
        if status != 200:
            raise RuntimeError(f"{route} answered {status}: {answer.decode(errors='replace')[:500]}")
        return json.loads(answer)

    def _ask(self, method: str, route: str, body: str | None, *, timeout_s: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request(method, route, body, {"Content-Type": "application/json"} if body else {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def first_token_s(self, prompt: list[int], max_tokens: int) -> tuple[float, float, int]:
        """Stream one completion: (seconds from the start of the process to the first token, seconds from the request
        to it, tokens in the answer)."""
        body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        asked = time.perf_counter()
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 200, answer.read()
        first, tokens = 0.0, 0
        for line in answer:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if event["choices"] and not first:
                    first = time.perf_counter()
                if event.get("usage"):
                    tokens = event["usage"]["completion_tokens"]
        connection.close()
        assert first, "the stream had no event with tokens"
        return first - self.spawned, first - asked, tokens

    def pages(self) -> dict[str, float]:
        """KV pages by state, and `capacity`."""
        found: dict[str, float] = {}
        for line in self.get("/metrics")[1].decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == "drivetrain_kv_pages_capacity":
                found["capacity"] = float(value)
            elif name.startswith('drivetrain_kv_pages{state="'):
                found[name.split('"')[1]] = float(value)
        return found

    def resident_bytes(self) -> dict[str, int]:
        """Memory of the server's own process and of those under it."""
        own, *below = process_tree(self.process.pid)
        return {"server": _resident_bytes(own), "engine": sum(_resident_bytes(pid) for pid in below)}

    def tail(self) -> str:
        """The end of the log."""
        self._log.flush()
        return self._log_path.read_text(encoding="utf-8", errors="replace")[-3000:]

    def end(self) -> None:
        """SIGTERM, and SIGKILL for what does not end by then."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._log.close()


def process_tree(root: int) -> list[int]:
    """A process and all below it."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            parents[int(entry.name)] = int(fields[1])
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _resident_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/statm").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _toml(backend_options: dict[str, dict[str, Any]]) -> str:
    lines: list[str] = []
    for backend, table in backend_options.items():
        lines.append(f"[backend_options.{backend}]")
        # A JSON string, number or boolean is also one of TOML.
        lines += [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    return "\n".join([*lines, ""])
