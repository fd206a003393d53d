"""The blocks of docs/guide.md that are marked `<!-- run: TEXT -->`: they succeed, and say TEXT."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^<!-- run: ([^\n]+) -->\n```(bash|python)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
ADDRESS = "http://127.0.0.1:8000"
START_LIMIT_S = 120.0


@pytest.fixture(scope="module")
def url(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`drivetrain serve` with the quick-start model, in fp32."""
    folder = tmp_path_factory.mktemp("guide")
    (folder / "drivetrain.toml").write_text(
        'dtype = "float32"\n[limits]\nnum_pages = 600\nmax_num_seqs = 8\n[backend_options.cpu]\nthreads = 1\n'
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = ["serve", str(smollm2_path), "--served-model-name", "smollm2-135m-instruct", "--port", str(port)]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", "from drivetrain_server.cli import main; main()", *arguments],
            cwd=folder,
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + START_LIMIT_S
        while not _ready(f"http://127.0.0.1:{port}"):
            assert process.poll() is None and time.monotonic() < deadline, (folder / "serve.log").read_text()[-3000:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=10).status_code == 200
    except httpx.TransportError:
        return False


def test_every_mark_has_its_block() -> None:
    assert len(BLOCKS) == GUIDE.count("<!-- run: ") >= 7


@pytest.mark.parametrize(("said", "language", "code"), BLOCKS, ids=[said for said, _, _ in BLOCKS])
def test_block_runs(said: str, language: str, code: str, url: str, tmp_path: Path) -> None:
    interpreter = [sys.executable, "-W", "error", "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        [*interpreter, code.replace(ADDRESS, url)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert said in done.stdout
