"""Valid requests of every kind at once against a real engine: all are 200, and each answer agrees with itself."""

from __future__ import annotations

import json
import math
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
import tokenizers

from fakes.serve_process import ServeProcess
from fakes.tiny_model import vocabulary
from tiny_tokenizers import byte_level_json

END_ID = vocabulary()["<|im_end|>"]
VOCAB_SIZE = len(vocabulary())
DEFAULT_TEMPERATURE = 0.8  # of the model's generation_config.json

SAMPLING: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1e-6},
    {"temperature": 100},
    {"temperature": 1.3},
    {"top_p": 0.01},
    {"top_p": 1},
    {"top_k": -1},
    {"top_k": 1},
    {"top_k": 2**31 - 1},
    {"min_p": 0.2},
    {"min_p": 1},
    {"presence_penalty": 2},
    {"frequency_penalty": -2},
    {"repetition_penalty": 1.2},
    {"repetition_penalty": 0.01},
    {"logit_bias": {"70": 100}},
    {"logit_bias": {"5": -100, "6": 3.5}},
    {"stop": "e"},
    {"stop": ["a", "o", "日"], "include_stop_str_in_output": True},
    {"stop": ["\n", " ", "�"]},
    {"stop_token_ids": list(range(100, 160))},
    {"stop_token_ids": [0, 1, 2]},
    {"ignore_eos": True},
    {"min_tokens": 12},
    {"min_tokens": 5, "stop": ["e", "t"]},
    {"bad_words": ["a", "the", " quick"]},
    {"bad_words": ["日本語", "fox jumps"]},
    {"n": 3},
    {"skip_special_tokens": False},
    {"prompt_logprobs": 3},
    {"prompt_logprobs": 0},
    {"priority": -100},
    {"priority": 100},
    {"cache_salt": "tenant"},
    {"max_tokens": 1},
    {"seed": -(2**63)},
    {"user": "someone", "nobody_knows": {"this": [1]}},
]
COMPLETION_ONLY: list[dict[str, Any]] = [
    {"prompt": "Hello"},
    {"prompt": "日本語 🎉 café \u0000\u202e"},
    {"prompt": "x" * 700},
    {"prompt": [9, 8, 7]},
    {"prompt": ["a", "bb", "ccc"]},
    {"prompt": [[1], [2, 3]]},
    {"logprobs": 0},
    {"logprobs": 20},
    {"echo": True},
    {"echo": True, "logprobs": 2},
    {"max_tokens": 0, "echo": True, "logprobs": 1},
    {"best_of": 3},
    {"add_special_tokens": False},
]
CHAT_ONLY: list[dict[str, Any]] = [
    {"logprobs": True, "top_logprobs": 20},
    {"logprobs": True},
    {"max_completion_tokens": 3},
    {"continue_final_message": True, "messages": [{"role": "assistant", "content": "Well"}]},
    {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": [{"type": "text", "text": "日"}]}]},
]


def _mixed(rng: random.Random, kinds: list[dict[str, Any]], base: dict[str, Any]) -> dict[str, Any]:
    body = dict(base)
    for kind in rng.sample(kinds, rng.randint(2, 6)):
        body |= kind
    return body


def _corpus() -> list[tuple[str, dict[str, Any]]]:
    """Each field alone, then mixtures; every body says all that decides its answer."""
    rng = random.Random(11)
    text = {"prompt": "The quick brown fox", "max_tokens": 16}
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 16}
    found: list[tuple[str, dict[str, Any]]] = []
    found += [("completions", text | kind) for kind in SAMPLING + COMPLETION_ONLY]
    found += [("chat/completions", chat | kind) for kind in SAMPLING + CHAT_ONLY]
    found += [("completions", _mixed(rng, SAMPLING + COMPLETION_ONLY, text)) for _ in range(50)]
    found += [("chat/completions", _mixed(rng, SAMPLING + CHAT_ONLY, chat)) for _ in range(30)]
    for _, body in found:
        if "max_completion_tokens" in body:
            body.pop("max_tokens", None)
        longest = body.get("max_completion_tokens", body.get("max_tokens"))
        if body.get("min_tokens", 0) > longest:
            del body["min_tokens"]
        if body.get("continue_final_message") and body["messages"][-1]["role"] != "assistant":
            del body["continue_final_message"]
        if body.get("best_of", 3) < body.get("n", 1):
            del body["best_of"]
        body |= {"model": "tiny", "return_token_ids": True}
        body.setdefault("seed", rng.randrange(2**40))
    return found


@dataclass
class Choice:
    """One answer, whichever way it came."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    finish_reason: str | None = None
    stop_reason: Any = None
    tokens: list[str] = field(default_factory=list[str])
    token_logprobs: list[float | None] = field(default_factory=list[float | None])
    tops: list[Any] = field(default_factory=list[Any])
    offsets: list[int] = field(default_factory=list[int])
    prompt_logprobs: list[Any] | None = None

    def add(self, raw: dict[str, Any]) -> None:
        message = raw.get("message") or raw.get("delta")
        self.text += raw.get("text") or (message or {}).get("content") or ""
        self.token_ids += raw.get("token_ids") or []
        self.finish_reason = raw["finish_reason"] or self.finish_reason
        self.stop_reason = raw.get("stop_reason", self.stop_reason)
        self.prompt_logprobs = raw.get("prompt_logprobs", self.prompt_logprobs)
        logprobs = raw["logprobs"] or {}
        for entry in logprobs.get("content") or []:
            self.tokens.append(entry["token"])
            self.token_logprobs.append(entry["logprob"])
            self.tops.append([top["logprob"] for top in entry["top_logprobs"]])
        self.tokens += logprobs.get("tokens", [])
        self.token_logprobs += logprobs.get("token_logprobs", [])
        self.offsets += logprobs.get("text_offset", [])
        self.tops += [top if top is None else list(top.values()) for top in logprobs.get("top_logprobs", [])]


Answer = tuple[dict[int, Choice], dict[str, Any]]


def _whole(server: ServeProcess, path: str, body: dict[str, Any]) -> Answer:
    answer = server.http.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    choices: dict[int, Choice] = {}
    for raw in answer.json()["choices"]:
        choices.setdefault(raw["index"], Choice()).add(raw)
    if "prompt_logprobs" in answer.json():
        choices[0].prompt_logprobs = answer.json()["prompt_logprobs"]
    return choices, answer.json()["usage"]


def _streamed(server: ServeProcess, path: str, body: dict[str, Any]) -> Answer:
    choices: dict[int, Choice] = {}
    usage: dict[str, Any] = {}
    answer = server.http.post(f"/v1/{path}", json=body | {"stream": True, "stream_options": {"include_usage": True}})
    assert answer.status_code == 200, answer.text
    assert answer.text.endswith("data: [DONE]\n\n")
    for line in answer.text.split("\n"):
        if line.startswith("data: {"):
            event = json.loads(line[6:])
            assert "error" not in event, event
            usage = event["usage"] or usage
            for raw in event["choices"]:
                choices.setdefault(raw["index"], Choice()).add(raw)
            if "prompt_logprobs" in event:
                choices[0].prompt_logprobs = event["prompt_logprobs"]
    return choices, usage


class Judge:
    """Says what is wrong with an answer, from its request alone."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body
        self.encoder = tokenizers.Tokenizer.from_str(byte_level_json())
        prompt = body.get("prompt")
        self.prompts: list[str | list[int]] | None = None
        if prompt is not None:
            single = isinstance(prompt, str) or isinstance(prompt[0], int)
            self.prompts = [prompt] if single else prompt

    def check(self, answer: Answer) -> None:
        choices, usage = answer
        body, n = self.body, self.body.get("n", 1)
        assert sorted(choices) == list(range(n * len(self.prompts or [0])))
        generated = sum(len(choice.token_ids) for choice in choices.values())
        if body.get("best_of", n) == n:
            assert usage["completion_tokens"] == generated
        else:
            assert usage["completion_tokens"] >= generated
        assert usage["total_tokens"] == usage["completion_tokens"] + usage["prompt_tokens"]
        if self.prompts is not None:
            assert usage["prompt_tokens"] == sum(len(self.ids(prompt)) for prompt in self.prompts)
        for index, choice in choices.items():
            self.check_end(choice)
            self.check_tokens(choice)
            prompt = None if self.prompts is None else self.prompts[index // n]
            self.check_logprobs(choice, prompt)
            self.check_text(choice, prompt)

    def ids(self, prompt: str | list[int]) -> list[int]:
        return self.encoder.encode(prompt).ids if isinstance(prompt, str) else prompt

    def check_end(self, choice: Choice) -> None:
        body = self.body
        longest = body.get("max_completion_tokens", body.get("max_tokens"))
        assert len(choice.token_ids) <= longest
        if choice.finish_reason == "length":
            assert len(choice.token_ids) == longest
            assert choice.stop_reason is None
            return
        assert choice.finish_reason == "stop"
        if isinstance(choice.stop_reason, str):
            assert choice.stop_reason in body["stop"]
            assert len(choice.token_ids) >= body.get("min_tokens", 0)
        else:
            ends = set(body.get("stop_token_ids", ())) | (set() if body.get("ignore_eos") else {END_ID})
            assert choice.token_ids[-1] in ends
            assert choice.stop_reason in (None, choice.token_ids[-1])
            assert len(choice.token_ids) > body.get("min_tokens", 0)
        if body.get("ignore_eos"):
            assert choice.stop_reason is not None

    def check_tokens(self, choice: Choice) -> None:
        for word in self.body.get("bad_words", ()):
            for spelling in (word, " " + word.lstrip()):
                ids = self.encoder.encode(spelling, add_special_tokens=False).ids
                places = range(len(choice.token_ids) - len(ids) + 1)
                assert not any(choice.token_ids[at : at + len(ids)] == ids for at in places), word
        for token, bias in self.body.get("logit_bias", {}).items():
            if bias == -100:
                assert int(token) not in choice.token_ids
        assert all(0 <= token < VOCAB_SIZE for token in choice.token_ids)

    def check_logprobs(self, choice: Choice, prompt: str | list[int] | None) -> None:
        body = self.body
        asked = body.get("logprobs")
        if asked is None or asked is False:
            assert choice.tokens == []
        else:
            num_top = body.get("top_logprobs", 0) if asked is True else asked
            echoed = 0 if prompt is None or not body.get("echo") else len(self.ids(prompt))
            assert len(choice.tokens) == len(choice.token_logprobs) == len(choice.tops)
            assert len(choice.tokens) == echoed + len(choice.token_ids)
            plain = not body.keys() & {
                "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "bad_words", "min_tokens"
            }  # fmt: skip
            for at, (logprob, top) in enumerate(zip(choice.token_logprobs, choice.tops, strict=True)):
                if echoed and at == 0:
                    assert logprob is None and top is None
                    continue
                assert logprob is not None and math.isfinite(logprob) and logprob <= 1e-4
                best = top[:num_top]
                assert best == sorted(best, reverse=True)
                assert num_top <= len(top) <= num_top + 1
                if top:
                    assert logprob <= top[0] + 1e-5
                if at >= echoed and body.get("temperature") == 0 and plain and num_top:
                    assert logprob == pytest.approx(top[0], abs=1e-5)
        if body.get("prompt_logprobs") is not None and choice.prompt_logprobs is not None:
            scored = choice.prompt_logprobs
            if prompt is not None:
                ids = self.ids(prompt)
                assert len(scored) == len(ids)
                assert all(str(token) in entry for token, entry in zip(ids[1:], scored[1:], strict=True))
            assert scored[0] is None
            for entry in scored[1:]:
                assert all(math.isfinite(each["logprob"]) for each in entry.values())
                ranked = sorted((each for each in entry.values()), key=lambda each: each["rank"])
                values = [each["logprob"] for each in ranked]
                assert all(high >= low - 1e-5 for high, low in zip(values, values[1:], strict=False))

    def check_text(self, choice: Choice, prompt: str | list[int] | None) -> None:
        body, text = self.body, choice.text
        if body.get("echo") and prompt is not None:
            shown = prompt if isinstance(prompt, str) else self.encoder.decode(prompt, skip_special_tokens=False)
            assert text.startswith(shown)
            text = text[len(shown) :]
        included = body.get("include_stop_str_in_output", False)
        stops = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop", [])
        if isinstance(choice.stop_reason, str) and included:
            assert text.endswith(choice.stop_reason)
        if stops and not body.get("min_tokens"):
            inner = text[: -len(choice.stop_reason)] if isinstance(choice.stop_reason, str) and included else text
            assert not any(stop in inner for stop in stops)
        if not isinstance(choice.stop_reason, str) and (prompt is None or isinstance(prompt, str)):
            ids = choice.token_ids
            if choice.finish_reason == "stop" and not included:
                ids = ids[:-1]
            assert text == self.encoder.decode(ids, skip_special_tokens=body.get("skip_special_tokens", True))


def _same(whole: Answer, streamed: Answer) -> None:
    for index, choice in whole[0].items():
        other = streamed[0][index]
        assert (choice.text, choice.token_ids) == (other.text, other.token_ids)
        assert (choice.finish_reason, choice.stop_reason) == (other.finish_reason, other.stop_reason)
        assert (choice.tokens, choice.offsets) == (other.tokens, other.offsets)
        assert (choice.prompt_logprobs is None) == (other.prompt_logprobs is None)
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [whole[1][name] for name in counts] == [streamed[1][name] for name in counts]


def _ask(server: ServeProcess, case: tuple[str, dict[str, Any]]) -> str | None:
    """What is wrong with the answers to a request, whole and streamed; None for nothing."""
    path, body = case
    try:
        judge = Judge(body)
        whole = _whole(server, path, body)
        judge.check(whole)
        if "best_of" not in body:
            streamed = _streamed(server, path, body)
            judge.check(streamed)
            _same(whole, streamed)
    except Exception as error:
        line = error.__traceback__
        while line is not None and line.tb_next is not None:
            line = line.tb_next
        return f"{path} {body}: line {0 if line is None else line.tb_lineno}: {type(error).__name__}: {error}"
    return None


def test_every_valid_request_is_answered_and_consistent(tiny_server: ServeProcess) -> None:
    cases = _corpus()
    with ThreadPoolExecutor(8) as pool:
        wrong = [reason for reason in pool.map(lambda case: _ask(tiny_server, case), cases) if reason is not None]
    assert wrong == [], f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong)
    tiny_server.assert_all_pages_back(599)


def test_offsets_point_at_the_tokens_where_all_are_ascii(tiny_server: ServeProcess) -> None:
    vocab = vocabulary()
    plain = {text for text in vocab if text.replace("Ġ", "").isascii() and text.replace("Ġ", "")}
    body = {
        "model": "tiny",
        "prompt": "The quick brown fox",
        "max_tokens": 30,
        "temperature": 1.0,
        "seed": 5,
        "logprobs": 3,
        "echo": True,
        "ignore_eos": True,
        "logit_bias": {str(token): -100 for text, token in vocab.items() if text not in plain},
    }
    choice = tiny_server.http.post("/v1/completions", json=body).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["text_offset"][0] == 0
    for token, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert choice["text"][offset : offset + len(token)] == token or token.startswith("<|")


def test_a_stop_string_over_token_borders_ends_the_answer_where_it_begins(tiny_server: ServeProcess) -> None:
    body = {"prompt": "Numbers: 1 2", "max_tokens": 40, "ignore_eos": True, "return_token_ids": True}
    text = tiny_server.complete(**body)["choices"][0]["text"]
    for start in range(0, 24, 3):
        stop = text[start : start + 4]
        if "�" in stop:
            continue
        for include in (False, True):
            choice = tiny_server.complete(**body, stop=[stop], include_stop_str_in_output=include)["choices"][0]
            end = text.index(stop)
            assert choice["text"] == text[: end + len(stop) if include else end]
            assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    tiny_server.assert_all_pages_back(599)


def test_a_forced_token_is_the_only_one_and_a_forbidden_one_never_comes(tiny_server: ServeProcess) -> None:
    greedy = tiny_server.complete(prompt="Once", max_tokens=12, return_token_ids=True, ignore_eos=True)
    first = greedy["choices"][0]["token_ids"][0]
    forbidden = tiny_server.complete(
        prompt="Once", max_tokens=12, return_token_ids=True, ignore_eos=True, logit_bias={str(first): -100}
    )
    assert first not in forbidden["choices"][0]["token_ids"]
    forced = tiny_server.complete(
        prompt="Once", max_tokens=12, return_token_ids=True, ignore_eos=True, logit_bias={"80": 100}, temperature=1
    )
    assert forced["choices"][0]["token_ids"] == [80] * 12


def test_many_prompts_and_answers_of_one_request_fit_into_the_queue(tiny_server: ServeProcess) -> None:
    body = {"model": "tiny", "prompt": ["a"] * 300, "n": 6, "max_tokens": 1, "seed": 1}
    answer = tiny_server.http.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"]) == 1800
    tiny_server.assert_all_pages_back(599)
