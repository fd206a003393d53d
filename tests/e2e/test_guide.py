"""The blocks of docs/guide.md that are marked `<!-- run: TEXT -->`: they succeed, and say TEXT."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.serve_process import ServeProcess

pytestmark = [pytest.mark.real_model, pytest.mark.slow]

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^<!-- run: ([^\n]+) -->\n```(bash|python)\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
ADDRESS = "http://127.0.0.1:8000"

CONFIG = """
dtype = "float32"

[limits]
num_pages = 600
max_num_seqs = 8

[backend_options.cpu]
threads = 1
"""


@pytest.fixture(scope="module")
def url(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`drivetrain serve` with the quick-start model, in fp32."""
    folder = tmp_path_factory.mktemp("guide")
    with ServeProcess(folder, smollm2_path, CONFIG, name="smollm2-135m-instruct") as running:
        yield running.url


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
