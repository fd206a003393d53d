from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from drivetrain.errors import EngineError, PromptTooLong, RequestError, RequestFailed, TemplateError
from drivetrain.frontend import Chat, Frontend
from drivetrain.messages import GenerateRequest
from drivetrain.sampling import SamplingParams
from fakes.engine import FakeEngine, says
from fakes.text import BEGIN, byte_tokenizer, line_template

HELLO = Chat(messages=[{"role": "user", "content": "Hi"}])


async def _frontend(engine: FakeEngine, *, template: bool = True) -> Frontend:
    await engine.start()
    return Frontend(engine, byte_tokenizer(), chat_template=line_template() if template else None)


def _request(**params: object) -> GenerateRequest:
    return GenerateRequest(request_id="r", prompt_ids=[97], params=SamplingParams(**params))  # type: ignore[arg-type]


async def _collect(frontend: Frontend, request: GenerateRequest) -> dict[int, str]:
    texts: dict[int, str] = {}
    async for deltas in frontend.generate(request):
        for delta in deltas:
            texts[delta.index] = texts.get(delta.index, "") + delta.text
    return texts


async def test_prompts_become_ids() -> None:
    frontend = await _frontend(FakeEngine())
    assert frontend.encode("ab") == [BEGIN, 97, 98]
    assert frontend.encode("ab", add_special_tokens=False) == [97, 98]
    assert frontend.encode([0, 299]) == [0, 299]
    assert frontend.encode_chat(HELLO) == list(b"user: Hi\nassistant: ")
    long = "x" * 40_000
    assert len(await frontend.encode_aside(long, add_special_tokens=False)) == 40_000


@pytest.mark.parametrize("prompt", [[], [300], [-1]])
async def test_prompts_outside_the_vocabulary_are_refused(prompt: list[int]) -> None:
    with pytest.raises(RequestError, match="prompt: ") as caught:
        (await _frontend(FakeEngine())).encode(prompt)
    assert caught.value.param == "prompt"


async def test_text_whose_token_the_model_does_not_have_is_refused() -> None:
    """Tokenizers may have added tokens beyond the embedding; one in a prompt must not reach the engine."""
    engine = FakeEngine()
    frontend = await _frontend(engine)
    engine._info = replace(frontend.info, vocab_size=256)
    assert frontend.encode("ab", add_special_tokens=False) == [97, 98]
    with pytest.raises(RequestError, match=r"prompt: token ids are 0 to 255, got 257") as caught:
        frontend.encode("ab")
    assert caught.value.param == "prompt"


async def test_bad_words_that_the_model_cannot_generate_are_left_out() -> None:
    engine = FakeEngine()
    frontend = await _frontend(engine)
    engine._info = replace(frontend.info, vocab_size=256)
    made = frontend.request("r", [97], SamplingParams(max_tokens=1, bad_words=("<|end|>", "ab")))
    assert made.bad_word_ids == [[97, 98], [32, 97, 98]]


async def test_model_without_template_refuses_chats() -> None:
    frontend = await _frontend(FakeEngine(), template=False)
    with pytest.raises(TemplateError, match="no chat template"):
        frontend.encode_chat(HELLO)


async def test_context_is_checked_to_the_token() -> None:
    frontend = await _frontend(FakeEngine())
    limit = frontend.info.max_model_len
    frontend.request("r", [97] * (limit - 5), SamplingParams(max_tokens=5))
    with pytest.raises(PromptTooLong, match=rf"{limit} tokens; {limit - 4} of the prompt and max_tokens of 5"):
        frontend.request("r", [97] * (limit - 4), SamplingParams(max_tokens=5))
    frontend.request("r", [97] * (limit - 1), SamplingParams())
    with pytest.raises(PromptTooLong):
        frontend.request("r", [97] * limit, SamplingParams())


async def test_engine_that_is_not_ready_is_told_as_such() -> None:
    with pytest.raises(EngineError, match="not ready"):
        Frontend(FakeEngine(), byte_tokenizer()).encode([1])


@pytest.mark.parametrize("batch", [1, 4, 100])
async def test_answers_do_not_depend_on_the_size_of_updates(batch: int) -> None:
    engine = FakeEngine(lambda request, index: [*("één", "två STOP x", "3")[index].encode(), 256])
    engine.batch = batch
    frontend = await _frontend(engine)
    assert await _collect(frontend, _request(n=3, stop=("STOP",))) == {0: "één", 1: "två ", 2: "3"}


async def test_last_live_completion_with_a_stop_string_ends_the_request() -> None:
    engine = FakeEngine(says("abcSTOPdef"))
    assert await _collect(await _frontend(engine), _request(n=2, stop=("STOP",))) == {0: "abc", 1: "abc"}
    assert engine.index_aborts == [("r", 0)]
    assert engine.aborted == ["r"]


async def test_failed_completion_fails_the_request() -> None:
    engine = FakeEngine()
    engine.fail_at = 2
    with pytest.raises(RequestFailed, match="page 7 was lost"):
        await _collect(await _frontend(engine), _request())


async def test_closing_the_stream_aborts_the_request() -> None:
    engine = FakeEngine()
    stream = (await _frontend(engine)).generate(_request())
    await anext(stream)
    await stream.aclose()
    assert engine.aborted == ["r"]


def test_chat_template_file_that_is_missing_is_named(tmp_path: Path) -> None:
    from drivetrain.errors import ConfigError
    from drivetrain.frontend import _chat_template

    with pytest.raises(ConfigError, match=r"chat_template: cannot read .*absent\.jinja"):
        _chat_template(byte_tokenizer(), str(tmp_path / "absent.jinja"))
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}!")
    template = _chat_template(byte_tokenizer(), str(tmp_path / "own.jinja"))
    assert template is not None and template.render(HELLO.messages) == "Hi!"
    assert _chat_template(byte_tokenizer(), None) is None
