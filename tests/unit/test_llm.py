"""`LLM` on a small engine: every prompt gets its answers in order, and nothing is left when something goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from drivetrain import LLM, SamplingParams
from drivetrain.chat_template import ChatTemplate
from drivetrain.engine import Engine
from drivetrain.errors import ConfigError, Overloaded, RequestError, RequestFailed, TemplateError
from drivetrain.frontend import Frontend
from drivetrain.generation_defaults import GenerationDefaults
from drivetrain.grammar import Grammar
from drivetrain.grammar.compiler import GrammarCompiler
from drivetrain.grammar.vocabulary import open_vocabulary
from drivetrain.messages import Update
from fakes.dialects import OPENS_THINKING, QWEN3
from fakes.text import BEGIN, END, byte_tokenizer, line_template
from fakes.tiny_engine import MAX_MODEL_LEN, tiny_engine

VOCAB = 258
"""Bytes, and the two special tokens of the byte tokenizer."""

Make = Callable[..., LLM]
HELLO = [{"role": "user", "content": "Hi"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Köln"]}},
                "required": ["city"],
            },
        },
    }
]
SHORT = """
{#- <tool_call>{"name": <function-name>, "arguments": <args-json-object>}</tool_call> -#}
{%- for tool in tools or [] %}[{{ tool.function.name }}] {% endfor -%}
{%- for message in messages %}{{ message.content }}{% endfor -%}
"""
"""Calls as Qwen does, in a context of 256 tokens."""
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes an `LLM` around a small engine with random weights; keywords go to the engine."""

    def made(*, template: bool | str = True, **changes: object) -> LLM:
        engine = tiny_engine(vocab_size=VOCAB, **changes)  # type: ignore[arg-type]
        frontend = Frontend(
            engine,
            byte_tokenizer(),
            chat_template=ChatTemplate({"default": template})
            if isinstance(template, str)
            else line_template()
            if template
            else None,
            defaults=GenerationDefaults(temperature=0.0),
        )
        monkeypatch.setattr("drivetrain.assembly.assemble", lambda config, on_phase: engine)
        monkeypatch.setattr("drivetrain.frontend.load_frontend", lambda config, informed: frontend)
        return LLM("tiny")

    return made


def grammars() -> GrammarCompiler:
    """For the byte tokenizer."""
    return GrammarCompiler(lambda: open_vocabulary(byte_tokenizer(), VOCAB, [END]))


def prompts(count: int) -> list[list[int]]:
    return [[65 + index, *range(40, 60 + index)] for index in range(count)]


def engine_of(llm: LLM) -> Engine:
    return llm._engine


def assert_nothing_left(llm: LLM) -> None:
    stats = llm.stats()
    assert not engine_of(llm).has_work
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)


def test_answers_come_in_the_order_of_the_prompts(make: Make) -> None:
    llm = make(rows=3)
    lengths = [9, 2, 7, 1, 5]
    params = [SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True) for length in lengths]
    outputs = llm.generate(prompts(5), params, progress=False)
    assert [output.prompt_ids for output in outputs] == prompts(5)
    assert [len(output.completions[0].token_ids) for output in outputs] == lengths
    alone = [llm.generate(prompt, each, progress=False)[0] for prompt, each in zip(prompts(5), params, strict=True)]
    assert [output.completions[0].token_ids for output in outputs] == [one.completions[0].token_ids for one in alone]
    assert alone[0].num_cached_tokens == 16
    assert_nothing_left(llm)


def test_one_prompt_may_come_alone_as_text_or_ids(make: Make) -> None:
    llm = make()
    (text,) = llm.generate("Hi", GREEDY, progress=False)
    assert (text.prompt, text.prompt_ids) == ("Hi", [BEGIN, 72, 105])
    (ids,) = llm.generate([BEGIN, 72, 105], GREEDY, progress=False)
    assert (ids.prompt, ids.prompt_ids) == (None, [BEGIN, 72, 105])
    assert ids.completions == text.completions
    assert ids.text == ids.completions[0].text
    known = bytes(token for token in ids.completions[0].token_ids if token < 256)
    assert ids.text == known.decode(errors="replace")


def test_no_prompts_give_no_answers(make: Make) -> None:
    assert make().generate([], GREEDY, progress=False) == []


def test_several_completions_of_a_prompt_stand_side_by_side(make: Make) -> None:
    llm = make()
    params = SamplingParams(n=3, temperature=1.5, seed=5, max_tokens=10, ignore_eos=True, logprobs=2)
    (output,) = llm.generate([72, 105], params, progress=False)
    assert [completion.index for completion in output.completions] == [0, 1, 2]
    assert len({tuple(completion.token_ids) for completion in output.completions}) == 3
    for completion in output.completions:
        assert completion.finish_reason == "length"
        assert completion.logprobs is not None
        assert [entry.token_id for entry in completion.logprobs] == completion.token_ids
        assert all(len(entry.top) == 2 and entry.logprob <= 0 for entry in completion.logprobs)
    assert llm.generate([72, 105], params, progress=False)[0].completions == output.completions


def test_scores_of_the_prompt_are_given_where_asked_for(make: Make) -> None:
    llm = make()
    plain, scored = llm.generate(
        [[72, 105, 33]] * 2,
        [GREEDY, SamplingParams(temperature=0.0, max_tokens=2, prompt_logprobs=1)],
        progress=False,
    )
    assert plain.prompt_logprobs is None
    assert scored.prompt_logprobs is not None
    assert scored.prompt_logprobs[0] is None
    assert [entry.token_id for entry in scored.prompt_logprobs[1:] if entry] == [105, 33]


def test_a_stop_string_ends_its_completion_and_frees_the_engine(make: Make) -> None:
    llm = make()
    ids = range(40, 60)
    free = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True)
    text = llm.generate(list(ids), free, progress=False)[0].text
    stop = next(text[at : at + 2] for at in range(4, len(text)) if text[at : at + 2].isascii())
    steps = llm.stats().steps
    params = SamplingParams(temperature=0.0, max_tokens=60, ignore_eos=True, stop=(stop,))
    (output,) = llm.generate(list(ids), params, progress=False)
    assert output.text == text[: text.index(stop)]
    assert (output.completions[0].finish_reason, output.completions[0].stop_reason) == ("stop", stop)
    assert llm.stats().steps - steps < 60
    assert_nothing_left(llm)


@pytest.mark.parametrize("max_waiting", [1, 2])
def test_a_full_queue_is_fed_as_it_empties(make: Make, max_waiting: int) -> None:
    llm = make(rows=2, max_waiting=max_waiting)
    outputs = llm.generate(prompts(9), GREEDY, progress=False)
    roomy = make(rows=8).generate(prompts(9), GREEDY, progress=False)
    assert [output.completions[0].token_ids for output in outputs] == [one.completions[0].token_ids for one in roomy]
    assert_nothing_left(llm)


def test_a_request_that_never_fits_the_queue_is_refused(make: Make) -> None:
    llm = make(max_waiting=1)
    with pytest.raises(Overloaded, match="the limit is 1"):
        llm.generate([72], SamplingParams(n=2, max_tokens=2), progress=False)
    assert_nothing_left(llm)


def test_a_wrong_prompt_is_refused_before_anything_runs(make: Make) -> None:
    llm = make()
    with pytest.raises(RequestError, match=f"the context has {MAX_MODEL_LEN} tokens"):
        llm.generate([[72], [72] * MAX_MODEL_LEN], GREEDY, progress=False)
    with pytest.raises(RequestError, match=r"prompt: token ids are 0 to 257, got 258"):
        llm.generate([[72], [258]], GREEDY, progress=False)
    assert llm.stats().steps == 0
    assert_nothing_left(llm)


def test_parameters_come_one_for_all_or_one_each(make: Make) -> None:
    with pytest.raises(RequestError, match="2 sampling parameters for 3 prompts"):
        make().generate(prompts(3), [GREEDY, GREEDY], progress=False)


def test_a_request_that_the_engine_fails_is_an_error_and_ends_the_others(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make()
    engine, real_step, steps = engine_of(llm), engine_of(llm).step, iter(range(1000))

    def step() -> list[Update]:
        updates = real_step()
        if next(steps) == 3:
            request_id = updates[0].request_id
            engine.abort(request_id, error="page 7 was lost")
        return updates

    monkeypatch.setattr(engine, "step", step)
    with pytest.raises(RequestFailed, match="page 7 was lost"):
        llm.generate(prompts(4), SamplingParams(max_tokens=60, ignore_eos=True), progress=False)
    assert_nothing_left(llm)
    assert llm.generate([72], GREEDY, progress=False)[0].completions[0].finish_reason is not None


def test_an_interrupted_batch_leaves_nothing_running(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make()
    engine, real_step, steps = engine_of(llm), engine_of(llm).step, iter(range(1000))

    def step() -> list[Update]:
        if next(steps) == 3:
            raise KeyboardInterrupt
        return real_step()

    monkeypatch.setattr(engine, "step", step)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(prompts(4), GREEDY, progress=False)
    assert_nothing_left(llm)


def test_a_chat_is_rendered_and_answered(make: Make) -> None:
    llm = make()
    messages = [{"role": "user", "content": "Hi"}]
    (one,) = llm.chat(messages, GREEDY, progress=False)
    assert bytes(one.prompt_ids).decode() == "user: Hi\nassistant: "
    both = llm.chat([messages, [{"role": "user", "content": "Ho"}]], GREEDY, progress=False)
    assert [bytes(output.prompt_ids).decode() for output in both] == [
        "user: Hi\nassistant: ",
        "user: Ho\nassistant: ",
    ]
    assert both[0].completions[0].token_ids == one.completions[0].token_ids
    (thinking,) = llm.chat(
        messages, GREEDY, add_generation_prompt=False, template_variables={"enable_thinking": True}, progress=False
    )
    assert bytes(thinking.prompt_ids).decode() == "user: Hi\nthinking=True"


def test_an_answer_of_a_chat_tells_reasoning_and_content_apart(make: Make) -> None:
    llm = make(template=QWEN3, grammars=grammars())
    said = Grammar(kind="regex", value="<think>Hm, (yes|no)\\.</think>\n\nIt is\\.")
    params = SamplingParams(temperature=1.0, seed=1, n=2, max_tokens=80, grammar=said)
    # Behind a prompt that has ended the reasoning, the form is the whole answer.
    (output,) = llm.chat(HELLO, params, template_variables={"enable_thinking": False}, progress=False)
    for completion in output.completions:
        message = completion.message
        assert message is not None
        assert message.reasoning in ("Hm, yes.", "Hm, no.") and message.content == "It is."
        assert completion.text == f"<think>{message.reasoning}</think>\n\nIt is."
        assert message.num_reasoning_tokens == len(message.reasoning)
        assert (message.tool_calls, message.finish_reason) == ([], "stop")
    assert output.message is output.completions[0].message
    with pytest.raises(RequestError, match="read its text"):
        _ = llm.generate("Hi", GREEDY, progress=False)[0].message
    assert_nothing_left(llm)


def test_a_demanded_form_stands_behind_the_reasoning_that_the_prompt_began(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = make(template=OPENS_THINKING, grammars=grammars())
    submit, asked = engine_of(llm).submit, []
    monkeypatch.setattr(engine_of(llm), "submit", lambda request: [asked.append(request), submit(request)])
    form = Grammar(kind="json_schema", value='{"const": [1]}')
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=20, grammar=form)
    message = llm.chat(HELLO, params, progress=False)[0].message
    assert (message.content, message.num_reasoning_tokens) == ("", 20)
    (request,) = asked
    assert request.params.grammar.value == form.value and "</think>" in request.params.grammar.within


def test_a_chat_calls_tools_where_it_has_to(make: Make) -> None:
    llm = make(template=SHORT, grammars=grammars())
    fixed: Any = {"tools": TOOLS, "progress": False}
    # The end token is wanted nowhere, so the model calls until something ends it.
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=200, logit_bias={END: -100.0})
    for choice, num_written in (("required", 2), ("weather", 1)):
        (output,) = llm.chat(HELLO, params, tool_choice=choice, **fixed)
        message = output.message
        assert message.finish_reason == "tool_calls" and message.content == ""
        assert [(call.name, call.arguments) for call in message.tool_calls] == [("weather", '{"city": "Köln"}')]
        assert output.completions[0].text.count("Köln") == num_written
        assert bytes(output.prompt_ids) == b"[weather] Hi"
    (kept,) = llm.chat(HELLO, GREEDY, tool_choice="none", **fixed)
    assert (bytes(kept.prompt_ids), kept.message.tool_calls) == (b"Hi", [])
    form = SamplingParams(grammar=Grammar(kind="json_object"))
    with pytest.raises(RequestError, match="tools demand a form"):
        llm.chat(HELLO, form, tool_choice="required", **fixed)
    assert_nothing_left(llm)


@pytest.mark.parametrize(
    ("tools", "choice", "message"),
    [
        ([{"type": "function"}], "auto", r"tools\[0\]: expected"),
        ([{"type": "function", "function": {"name": "f", "parameters": 5}}], "auto", "expected a JSON schema; got 5"),
        ([{"type": "function", "function": {"name": "f"}}] * 2, "auto", r"tools\[1\]: expected .* of its own"),
        ([{"type": "function", "function": {"name": "f"}}], "g", r'function of tools \(f\); got "g"'),
        ([], "required", r'function of tools \(none\); got "required"'),
    ],
)
def test_tools_that_are_none_are_refused(make: Make, tools: list[Any], choice: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make(template=QWEN3).chat(HELLO, GREEDY, tools=tools, tool_choice=choice, progress=False)


def test_a_model_without_template_refuses_chats(make: Make) -> None:
    with pytest.raises(TemplateError, match="no chat template"):
        make(template=False).chat([{"role": "user", "content": "Hi"}], progress=False)


def test_parameters_default_to_what_the_model_recommends(make: Make) -> None:
    llm = make()
    outputs = [llm.generate([72], progress=False)[0].completions[0].token_ids for _ in range(2)]
    assert outputs[0] == outputs[1], "the recommended temperature is 0"


def test_an_unknown_setting_is_named() -> None:
    with pytest.raises(ConfigError, match="max_modle_len"):
        LLM("tiny", max_modle_len=5)


def test_leaving_the_block_frees_the_device(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[bool] = []
    with make() as llm:
        monkeypatch.setattr(engine_of(llm), "close", lambda: closed.append(True))
        llm.generate([72], GREEDY, progress=False)
        assert not closed
    assert closed == [True]
