"""What a vendor writes is counted in the docs, and what everybody shares names no vendor."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "backends" / "index.md"
SHARED = [ROOT / "core" / "drivetrain", ROOT / "plugins" / "drivetrain_plugins", ROOT / "server" / "drivetrain_server"]
TOLERANCE = 0.1
VENDORS = re.compile(
    r"(?<![a-z])(cuda|nvidia|nccl|cublas|cudnn|nvlink|rocm|hip|amd|rccl|mfma|gaudi|habana|hpu|hccl|intel|xpu|tpu|npu|mps"
    r"|ascend npu|neuron|opencl|triton|apple|metal|gfx\d+|sm_\d+)(?![a-z])",
    re.IGNORECASE,
)
NOT_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def python_lines(source: str) -> int:
    """Lines that hold code: not blank, no comment, no docstring."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            assert node.end_lineno is not None
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def kernel_lines(source: str) -> int:
    """Lines of C that hold code."""
    bare = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
    return sum(bool(line.split("//")[0].strip()) for line in bare.splitlines())


def lines_of(package: Path) -> int:
    """Code of a package, its tests left out."""
    paths = [path for path in package.rglob("*") if "tests" not in path.relative_to(package).parts]
    python = sum(python_lines(path.read_text("utf-8")) for path in paths if path.suffix == ".py")
    return python + sum(kernel_lines(path.read_text("utf-8")) for path in paths if path.suffix == ".cl")


def listed() -> dict[str, int]:
    text = PAGE.read_text("utf-8").split("<!-- lines -->\n", 1)[1].split("\n\n", 1)[0]
    rows = re.findall(r"^\| `([\w/]+)` \| ([\d,]+) \|", text, re.MULTILINE)
    return {package: int(count.replace(",", "")) for package, count in rows}


@pytest.mark.parametrize("package", listed())
def test_lines_that_a_vendor_writes_are_as_many_as_the_page_says(package: str) -> None:
    counted, told = lines_of(ROOT / package), listed()[package]
    assert abs(counted - told) <= TOLERANCE * told, f"{package} has {counted} lines; write that into {PAGE.name}"


def test_examples_and_the_template_are_counted() -> None:
    examples = {f"examples/{folder.name}" for folder in (ROOT / "examples").iterdir() if folder.is_dir()}
    assert examples | {"plugins/template"} <= listed().keys()


def test_what_everybody_shares_names_no_vendor() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in SHARED
        for path in sorted(folder.rglob("*.py"))
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if VENDORS.search(line)
    ]
    assert found == []


def test_the_search_for_vendors_finds_them() -> None:
    for line in ("torch.cuda.synchronize()", "is_cuda", "arch == 'gfx942'", "# the NVIDIA way", "HPU_GRAPHS = 1"):
        assert VENDORS.search(line), line
    for line in ("buckets ascend", "the relationship", "chips", "parameters", "def ample"):
        assert not VENDORS.search(line), line


def test_code_is_told_from_comments_and_docstrings() -> None:
    assert (
        python_lines('"""Module.\n\nMore."""\n\n# comment\nx = (\n    1,  # one\n)\n\n\ndef f():\n    """Doc."""\n')
        == 4
    )
    assert kernel_lines("// a\n/* b\n c */\nint x; // d\n\nint y;\n") == 2
