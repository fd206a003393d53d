"""The pages under docs say what the code does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel

from drivetrain.config import load_config
from drivetrain.dialects.forms import ReasoningFamily, ToolFamily
from drivetrain.dialects.reasoning_families import REASONING_FAMILIES
from drivetrain.dialects.spelling import written_calls
from drivetrain.dialects.tool_families import TOOL_FAMILIES
from drivetrain.messages import EngineInfo, EngineStats
from drivetrain.models.families import FAMILIES, olmo2
from drivetrain.models.families.blocks import _LISTS, _OPTIONAL, _REQUIRED, _SCALINGS
from drivetrain.weights.gguf_config import _BUILDERS
from drivetrain_server.errors import KINDS
from drivetrain_server.telemetry import Telemetry, render
from drivetrain_server.wire.chat import ChatMessage, ChatRequest
from drivetrain_server.wire.completions import CompletionRequest
from drivetrain_server.wire.embeddings import EmbeddingRequest
from drivetrain_server.wire.kept_responses import InputItemsQuery
from drivetrain_server.wire.messages import MessagesRequest
from drivetrain_server.wire.ollama import OllamaChat, OllamaGenerate
from drivetrain_server.wire.responses import ResponsesRequest
from drivetrain_server.wire.sampling import SamplingFields
from drivetrain_server.wire.tokens import Detokenize, TokenizeChat, TokenizeText
from drivetrain_server.wire.unservable import (
    CHAT,
    COMMON,
    COMPLETIONS,
    EMBEDDINGS,
    IGNORED,
    MESSAGES,
    OLLAMA,
    OLLAMA_OPTIONS,
    RESPONSES,
    RETRIEVE,
)

OTHERS = (("messages", MESSAGES), ("responses", RESPONSES), ("kept", RETRIEVE), ("ollama", OLLAMA | OLLAMA_OPTIONS))

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def table(page: str, mark: str) -> list[list[str]]:
    """Cells of the table that follows `<!-- mark -->`, without its head."""
    text = (DOCS / page).read_text(encoding="utf-8").split(f"<!-- {mark} -->\n", 1)[1]
    lines = text.split("\n\n", 1)[0].strip().splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def block(page: str, mark: str) -> str:
    text = (DOCS / page).read_text(encoding="utf-8").split(f"<!-- {mark} -->\n", 1)[1]
    return text.split("```", 2)[1].split("\n", 1)[1]


def anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", CODE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(target), f"{link}: no such heading"


def test_pictures_are_there_and_light() -> None:
    named = {
        (page.parent / path).resolve()
        for page in PAGES
        for path in re.findall(r'(?:!\[[^\]]*\]\(|src="|srcset=")([^")]+)', CODE.sub("", page.read_text("utf-8")))
        if not path.startswith("http")
    }
    assert named == {path.resolve() for path in (DOCS / "pictures").iterdir()}
    assert all(path.stat().st_size < 250_000 for path in named)


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name
    for page in (DOCS / "decisions").glob("*.md"):
        assert f"(decisions/{page.name})" in index, page.name


def test_paths_that_pages_name_exist() -> None:
    for page in PAGES:
        for path in re.findall(
            r"`((?:tests|bench|core|plugins|server|platforms)/[\w/.]+\.py)`", page.read_text("utf-8")
        ):
            assert (ROOT / path).is_file(), f"{page.name}: {path}"


def test_the_guides_config_file_loads(tmp_path: Path) -> None:
    (tmp_path / "drivetrain.toml").write_text(block("guide.md", "config"))
    config = load_config(directory=tmp_path)
    assert (config.engine.model, config.engine.kv_memory) == ("smollm2-135m-instruct", 2 * 1024**3)
    assert config.server.sampling_defaults == {"temperature": 0.7, "top_p": 0.9}
    assert config.engine.options_of("cpu") == {"threads": 2}


def fields(*models: type[BaseModel], without: type[BaseModel] | None = None) -> list[str]:
    own = dict.fromkeys(name for model in models for name in model.model_fields)
    return sorted(name for name in own if without is None or name not in without.model_fields)


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ("fields: SamplingFields", fields(SamplingFields)),
        ("fields: ChatRequest - SamplingFields", fields(ChatRequest, without=SamplingFields)),
        ("fields: ChatMessage", fields(ChatMessage)),
        ("fields: CompletionRequest - SamplingFields", fields(CompletionRequest, without=SamplingFields)),
        ("fields: EmbeddingRequest", fields(EmbeddingRequest)),
        ("fields: ResponsesRequest", fields(ResponsesRequest)),
        ("fields: InputItemsQuery", fields(InputItemsQuery)),
        ("fields: MessagesRequest", fields(MessagesRequest)),
        ("fields: OllamaChat + OllamaGenerate", fields(OllamaChat, OllamaGenerate)),
        ("fields: TokenizeText + TokenizeChat + Detokenize", fields(TokenizeText, TokenizeChat, Detokenize)),
    ],
)
def test_tables_of_fields_are_those_of_the_wire(mark: str, expected: list[str]) -> None:
    assert sorted(names(row[0])[0] for row in table("http.md", mark)) == expected


def sentences(cell: str, default: str) -> str:
    """What the table of a page says of a field, as the docstring of the field has it."""
    meaning = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", cell)
    told = f"{meaning[0].upper()}{meaning[1:]}."
    return told if default in ("", "none", "required") else f"{told} Default: {default}."


@pytest.mark.parametrize(
    ("mark", "models"),
    [
        ("fields: SamplingFields", [SamplingFields]),
        ("fields: ChatRequest - SamplingFields", [ChatRequest]),
        ("fields: ChatMessage", [ChatMessage]),
        ("fields: CompletionRequest - SamplingFields", [CompletionRequest]),
        ("fields: EmbeddingRequest", [EmbeddingRequest]),
        ("fields: ResponsesRequest", [ResponsesRequest]),
        ("fields: InputItemsQuery", [InputItemsQuery]),
        ("fields: MessagesRequest", [MessagesRequest]),
        ("fields: OllamaChat + OllamaGenerate", [OllamaChat, OllamaGenerate]),
        ("fields: TokenizeText + TokenizeChat + Detokenize", [TokenizeText, TokenizeChat, Detokenize]),
    ],
)
def test_meanings_of_fields_are_their_docstrings(mark: str, models: list[type[BaseModel]]) -> None:
    head = (DOCS / "http.md").read_text("utf-8").split(f"<!-- {mark} -->\n", 1)[1].split("\n", 1)[0]
    for row in table("http.md", mark):
        name = names(row[0])[0]
        owners = [model for model in models if name in model.model_fields]
        expected = sentences(row[-1], row[3] if "| default |" in head else "")
        if row[-1] == "as in chat completions":
            expected = ChatRequest.model_fields[name].description or ""
        for owner in owners:
            assert " ".join((owner.model_fields[name].description or "").split()) == " ".join(expected.split()), name


def test_refused_fields_have_their_reasons() -> None:
    listed = {(names(row[0])[0], row[1]): (row[2], len(names(row[3]))) for row in table("http.md", "refused")}
    known = {
        (name, "both" if name in COMMON and route in ("chat", "completions") else route): (
            rule.reason,
            len(rule.harmless),
        )
        for route, rules in (("chat", CHAT), ("completions", COMPLETIONS), ("embeddings", EMBEDDINGS), *OTHERS)
        for name, rule in rules.items()
    }
    assert listed == known


def test_fields_that_change_nothing_are_listed() -> None:
    text = (DOCS / "http.md").read_text("utf-8").split("<!-- ignored -->\n", 1)[1]
    assert tuple(names(text.split("\n- ", 1)[0])) == IGNORED


def test_table_of_errors_is_the_map() -> None:
    listed = {names(row[0])[0]: (int(row[1]), names(row[2])[0], names(row[3])[0]) for row in table("http.md", "errors")}
    assert listed == {kind.__name__: (how.status, how.type, str(how.code)) for kind, how in KINDS.items()}


def test_every_code_that_the_server_answers_with_is_listed() -> None:
    listed = {names(row[1])[0] for row in table("http.md", "answers")}
    source = "".join(path.read_text("utf-8") for path in (ROOT / "server/drivetrain_server").rglob("*.py"))
    written = set(re.findall(r'code="([a-z_]+)"', source)) | {"invalid_value", "missing_required_parameter"}
    assert listed == written - {"overloaded"}


def test_table_of_models_is_the_families() -> None:
    listed: set[str] = set()
    formats: set[str] = set()
    for row in table("models.md", "families"):
        listed |= {*names(row[1]), *names(row[2])}
        formats |= set(names(row[3]))
    assert listed == set(FAMILIES)
    assert formats == set(_BUILDERS)


def test_table_of_rotary_scalings_is_complete() -> None:
    listed = {names(row[0])[0]: (row[1], set(names(row[2]))) for row in table("models.md", "scalings")}
    assert {name: kind for name, (kind, _) in listed.items()} == _SCALINGS
    for kind in set(_SCALINGS.values()) - {"none"}:
        extra = {"longrope": set(_LISTS), "yarn": {"truncate"}}.get(kind, set())
        assert listed[kind][1] == {*_REQUIRED[kind], *_OPTIONAL[kind], *extra}


def test_the_worked_example_is_the_file() -> None:
    assert block("models.md", "olmo2") in inspect.getsource(olmo2)


def test_table_of_metrics_is_what_the_server_says() -> None:
    telemetry = Telemetry()
    telemetry.request("/r", "GET", 200, 0.1)
    telemetry.generated("chat", duration_s=1.0, first_token_s=0.5, num_tokens=2)
    info = EngineInfo(
        model="m",
        architecture="a",
        backend="b",
        device="d",
        dtype="float32",
        vocab_size=1,
        max_model_len=1,
        num_pages=1,
        page_size=1,
        max_num_rows=1,
        max_step_tokens=1,
        kv_bytes=1,
        weight_bytes=1,
    )
    text = render([telemetry.reading(open_requests=0)], ready=True, info=info, stats=EngineStats()).decode()
    said: dict[str, str] = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    listed = {names(row[0])[0]: row[1] for row in table("operations.md", "metrics")}
    assert listed == said
    for row in table("operations.md", "metrics"):
        for label in names(row[2]):
            assert re.search(rf"^{names(row[0])[0]}\w*{{[^}}]*\b{label}=", text, re.MULTILINE), (row[0], label)


def test_proofs_are_tests_that_exist() -> None:
    rows = table("operations.md", "proofs")
    assert len(rows) > 15
    for promise, proofs in rows:
        assert names(proofs), promise
        for proof in names(proofs):
            assert "\ndef test_" in (ROOT / proof).read_text("utf-8").replace("async def", "def"), proof


def test_phases_are_those_of_the_start() -> None:
    listed = {names(row[0])[0] for row in table("operations.md", "phases")}
    source = "".join(path.read_text("utf-8") for path in (ROOT / "core/drivetrain").rglob("*.py"))
    assert listed == set(re.findall(r'(?:clock\.phase|progress)\("([^"]+)"', source))


def test_prose_fits_the_line() -> None:
    pages = ("guide", "http", "models", "operations", "performance", "README", "architecture", "dependencies", "tools")
    for page in (*(DOCS / f"{name}.md" for name in pages), ROOT / "CONTRIBUTING.md"):
        for number, line in enumerate(page.read_text("utf-8").splitlines(), 1):
            assert len(line) <= 120 or line.startswith("|"), f"{page.name}:{number} has {len(line)} characters"


@pytest.mark.parametrize(
    ("mark", "families"), [("tool families", TOOL_FAMILIES), ("reasoning families", REASONING_FAMILIES)]
)
def test_tables_of_dialects_are_the_families(
    mark: str, families: Mapping[str, ToolFamily] | Mapping[str, ReasoningFamily]
) -> None:
    rows = table("tools.md", mark)
    assert [(names(row[0])[0], row[1]) for row in rows] == [(name, each.models) for name, each in families.items()]
    for row, family in zip(rows, families.values(), strict=True):
        if isinstance(family, ToolFamily) and not family.channels:
            written = written_calls(family.forms[0], [("f", {"a": 1})])
        elif isinstance(family, ReasoningFamily) and not family.channels:
            written = f"{family.open}...{family.close}"
        else:
            continue
        # A bar within a cell has a backslash, which the table's reader took for two cells.
        shown = "|".join(row[2:]).replace("\\", "").strip("` ")
        assert shown == written.replace("\n", "⏎").strip("` "), row
