"""What people build with: frameworks over the official clients. They come with the extra `test-clients`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from fakes.dialects import QWEN3, frontends_with
from fakes.engine import FakeEngine, says
from fakes.server import RunningServer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

HELLO = [{"role": "user", "content": "Hi"}]
PARIS = json.dumps({"name": "Paris", "country": "France"})


class City(BaseModel):
    """What a structured answer is read into."""

    name: str
    country: str


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer(FakeEngine(), frontend=frontends_with(QWEN3)) as running:
        yield running


def answering(server: RunningServer, text: str) -> str:
    """The server's address, once it answers with a text."""
    server.engine.script = says(text)
    return server.url


def calling(name: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {PARIS}}}\n</tool_call>'


def test_langchain_openai(server: RunningServer) -> None:
    langchain = pytest.importorskip("langchain_openai")
    url = f"{answering(server, 'Hello there!')}/v1"
    options: dict[str, Any] = {"model": "tiny", "base_url": url, "api_key": "none"}
    chat = langchain.ChatOpenAI(**options)
    assert chat.invoke("Hi").content == "Hello there!"
    assert "".join(str(chunk.content) for chunk in chat.stream("Hi")) == "Hello there!"
    assert langchain.ChatOpenAI(use_responses_api=True, **options).invoke("Hi").text == "Hello there!"
    vectors = langchain.OpenAIEmbeddings(check_embedding_ctx_length=False, **options).embed_documents(["a", "b"])
    assert [len(vector) for vector in vectors] == [8, 8]
    answering(server, PARIS)
    structured = chat.with_structured_output(City, method="json_schema")
    assert structured.invoke("Where?") == City(name="Paris", country="France")
    answering(server, calling("City"))
    assert chat.bind_tools([City]).invoke("Where?").tool_calls[0]["args"] == json.loads(PARIS)


def test_litellm(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    url = answering(server, "Hello there!")
    for model, base in (("openai/tiny", f"{url}/v1"), ("anthropic/tiny", url), ("ollama_chat/tiny", url)):
        options: dict[str, Any] = {"model": model, "api_base": base, "api_key": "none", "messages": HELLO}
        answer = litellm.completion(**options)
        assert answer.choices[0].message.content == "Hello there!", model
        assert answer.usage.completion_tokens == 13, model
        chunks = litellm.completion(stream=True, **options)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello there!", model


def test_instructor(server: RunningServer) -> None:
    instructor = pytest.importorskip("instructor")
    import openai

    for mode, text in ((instructor.Mode.TOOLS, calling("City")), (instructor.Mode.JSON_SCHEMA, PARIS)):
        client = instructor.from_openai(
            openai.OpenAI(base_url=f"{answering(server, text)}/v1", api_key="none"), mode=mode
        )
        found = client.chat.completions.create(model="tiny", response_model=City, messages=HELLO)
        assert (found.name, found.country) == ("Paris", "France")


def test_pydantic_ai(server: RunningServer) -> None:
    ai = pytest.importorskip("pydantic_ai")
    from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{answering(server, 'Hello there!')}/v1", api_key="none")
    for kind in (OpenAIChatModel, OpenAIResponsesModel):
        assert ai.Agent(kind("tiny", provider=provider)).run_sync("Hi").output == "Hello there!"
    answering(server, calling("final_result"))
    agent = ai.Agent(OpenAIChatModel("tiny", provider=provider), output_type=City)
    assert agent.run_sync("Where?").output == City(name="Paris", country="France")
