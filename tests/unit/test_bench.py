"""The load test: what it sends, what it counts, what it refuses to call a result."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

import pytest

from drivetrain.errors import ConfigError
from drivetrain_server.bench.jobs import Job, Lengths, file_jobs, lengths, random_jobs
from drivetrain_server.bench.report import distribution, read_goals, summarize
from drivetrain_server.bench.traffic import Load, Sample, drive
from drivetrain_server.http_client import Endpoint
from fakes.sse_server import Answer, events, sse_server


def stream(prompt_tokens: int, completion_tokens: int, cached: int = 0) -> list[bytes]:
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
    tokens = [{"choices": [{"text": f" t{i}", "finish_reason": None}]} for i in range(completion_tokens)]
    last = {"choices": [{"text": "", "finish_reason": "length"}]}
    return events(*tokens, last, {"choices": [], "usage": usage})


def jobs(count: int, inputs: int, outputs: int) -> list[Job]:
    return random_jobs(count, inputs=Lengths(inputs, inputs), outputs=Lengths(outputs, outputs))


async def test_every_request_is_timed_and_counted():
    load = Load(model="m", concurrency=2)
    answer = Answer(stream(5, 3, cached=2), pause_s=0.002)
    async with sse_server(lambda *_: answer) as server:
        samples = await drive(Endpoint(url=server.url), load, jobs(6, 5, 3))
    report = summarize(samples)
    assert (report.succeeded, report.failed, report.problems) == (6, 0, {})
    assert (report.input_tokens, report.output_tokens, report.cached_tokens) == (30, 18, 12)
    assert report.output_tokens_per_s == pytest.approx(18 / report.duration_s)
    assert server.most_open == 2
    assert report.ttft_ms is not None
    assert report.itl_ms is not None
    assert report.tpot_ms is not None
    assert report.ttft_ms.p50 >= 2
    assert report.itl_ms.mean >= 2
    assert all(len(sample.arrivals) == 3 for sample in samples)
    assert report.tpot_ms.mean == pytest.approx(report.itl_ms.mean)


async def test_requests_are_exact_token_ids_with_a_fixed_length():
    asked = random_jobs(3, inputs=Lengths(8, 8), outputs=Lengths(1, 1), shared_prefix=6, vocab_size=500, seed=7)
    async with sse_server(lambda *_: Answer(stream(8, 1))) as server:
        await drive(Endpoint(url=server.url), Load(model="m"), asked)
    bodies = [body for *_, body in server.requests]
    assert sorted(body["prompt"] for body in bodies) == sorted(list(job.prompt) for job in asked)
    assert all(len(body["prompt"]) == 8 and max(body["prompt"]) < 500 for body in bodies)
    assert len({tuple(body["prompt"][:6]) for body in bodies}) == 1
    assert len({tuple(body["prompt"]) for body in bodies}) == 3
    expected = {"model": "m", "max_tokens": 1, "ignore_eos": True, "stream": True, "temperature": 0.0}
    assert all(expected.items() <= body.items() for body in bodies)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (Answer(stream(5, 2)), "the server counted 2 answer tokens, expected 3; the figures would not be comparable"),
        (Answer(stream(6, 3)), "the server counted 6 prompt tokens, expected 5; the figures would not be comparable"),
        (Answer(stream(5, 3)[-2:]), "the stream had no event with tokens"),
        (Answer([b"{}"], status=503), "the server answered 503: {}"),
        (Answer(events({"error": {"message": "boom"}})), "the stream ended with an error: boom"),
        (Answer(stream(5, 3)[:1], cut=True), "the server broke off in the middle of its answer"),
    ],
)
async def test_what_is_not_a_fair_result_is_a_failure_with_its_reason(answer, problem):
    async with sse_server(lambda *_: answer) as server:
        report = summarize(await drive(Endpoint(url=server.url), Load(model="m"), jobs(2, 5, 3)))
    assert (report.succeeded, report.failed) == (0, 2)
    assert report.problems == {problem: 2}
    assert report.ttft_ms is None


async def test_rate_spaces_arrivals_out():
    load = Load(model="m", concurrency=5, rate=200.0)
    async with sse_server(lambda *_: Answer(stream(1, 1))) as server:
        samples = await drive(Endpoint(url=server.url), load, jobs(5, 1, 1))
    sent = sorted(sample.sent_s for sample in samples)
    assert sent[-1] - sent[0] > 0.001


async def test_an_arrival_that_has_to_wait_waits_on_the_clock():
    load = Load(model="m", concurrency=1, rate=1000.0)
    async with sse_server(lambda *_: Answer(stream(1, 1), pause_s=0.03)) as server:
        samples = await drive(Endpoint(url=server.url), load, jobs(4, 1, 1))
    assert server.most_open == 1
    waits = sorted(sample.ttft_s for sample in samples)
    assert waits[0] >= 0.03
    assert waits[-1] >= 0.09, "the last one stood behind three others"


async def test_arrivals_are_not_bounded_without_a_concurrency():
    load = Load(model="m", concurrency=None, rate=10_000.0)
    async with sse_server(lambda *_: Answer(stream(1, 1), pause_s=0.2)) as server:
        samples = await drive(Endpoint(url=server.url), load, jobs(12, 1, 1))
    assert server.most_open == 12
    assert all(sample.problem is None for sample in samples)


def test_percentiles_are_nearest_rank():
    spread = distribution([0.001 * i for i in range(1, 101)])
    assert spread is not None
    assert (spread.p50, spread.p90, spread.p95, spread.p99, spread.max) == pytest.approx((50, 90, 95, 99, 100))
    assert spread.mean == pytest.approx(50.5)
    assert distribution([]) is None


def test_time_per_token_counts_tokens_not_events():
    sample = Sample(sent_s=0.0, arrivals=[1.0, 2.0], done_s=2.0, input_tokens=1, output_tokens=5)
    assert sample.tpot_s == pytest.approx(0.25)
    assert sample.itl_s == [1.0]
    assert sample.ttft_s == 1.0


async def test_a_conversation_goes_to_the_chat_route_and_its_opening_is_no_token():
    opening = {"choices": [{"delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
    tokens = [{"choices": [{"delta": {"content": text}, "finish_reason": None}]} for text in ("a", "", "b")]
    last = {"choices": [{"delta": {}, "finish_reason": "length"}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3}}
    job = Job(messages=({"role": "user", "content": "Hi"},), output_tokens=3)
    async with sse_server(lambda *_: Answer(events(opening, *tokens, last, usage))) as server:
        (sample,) = await drive(Endpoint(url=server.url), Load(model="m"), [job])
    ((_, path, _, body),) = server.requests
    assert path == "/v1/chat/completions"
    assert body["messages"] == [{"role": "user", "content": "Hi"}] and "prompt" not in body
    assert (sample.problem, len(sample.arrivals), sample.input_tokens) == (None, 3, 9)


async def test_a_server_that_counts_nothing_is_no_result():
    without = events({"choices": [{"text": "a", "finish_reason": "length"}]})
    async with sse_server(lambda *_: Answer(without)) as server:
        (sample,) = await drive(Endpoint(url=server.url), Load(model="m"), jobs(1, 5, 1))
    assert sample.problem is not None and "brought no usage" in sample.problem


def test_lengths_mix_within_their_bounds_and_repeat_with_the_seed():
    made = random_jobs(200, inputs=lengths("10-20", "x"), outputs=lengths("1-4", "x"), seed=3)
    assert {job.input_tokens for job in made} == set(range(10, 21))
    assert {job.output_tokens for job in made} == {1, 2, 3, 4}
    assert all(len(job.prompt) == job.input_tokens for job in made)
    assert made == random_jobs(200, inputs=lengths("10-20", "x"), outputs=lengths("1-4", "x"), seed=3)
    assert made != random_jobs(200, inputs=lengths("10-20", "x"), outputs=lengths("1-4", "x"), seed=4)


def test_prefixes_are_shared_within_their_group():
    made = random_jobs(9, inputs=Lengths(8, 8), outputs=Lengths(1, 1), shared_prefix=5, num_prefixes=3)
    groups = Counter(job.prompt[:5] for job in made)
    assert sorted(groups.values()) == [3, 3, 3]
    assert len({job.prompt for job in made}) == 9


@pytest.mark.parametrize("text", ["", "0", "5-4", "a", "1-", "-3", "1-2-3", "1.5"])
def test_wrong_lengths_are_refused(text):
    with pytest.raises(ConfigError, match="expected a length such as 128 or a range"):
        lengths(text, "--input-tokens")


def test_a_file_is_shuffled_by_its_seed_and_gone_through_again(tmp_path):
    path = tmp_path / "asked.jsonl"
    lines = [{"prompt": "text", "max_tokens": 7}, {"prompt": [5, 6]}, {"messages": [{"role": "user", "content": "x"}]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    made = file_jobs(path, 7, outputs=Lengths(3, 3), seed=1)
    assert len(made) == 7
    assert {(job.prompt, job.messages is None, job.input_tokens, job.output_tokens) for job in made} == {
        ("text", True, None, 7),
        ((5, 6), True, 2, 3),
        ((), False, None, 3),
    }
    assert made == file_jobs(path, 7, outputs=Lengths(3, 3), seed=1)
    (tmp_path / "plain.txt").write_text("one\n\ntwo\n")
    assert {job.prompt for job in file_jobs(tmp_path / "plain.txt", 2, outputs=Lengths(1, 1))} == {"one", "two"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no prompt"),
        ("{", "line 1 is not JSON"),
        ('{"prompt": ""}', "line 1 has no `prompt`"),
        ('{"prompt": [1, true]}', "line 1 has no `prompt`"),
        ("[1]\n", "line 1 has no `prompt`"),
        ('{"prompt": "x", "max_tokens": 0}', "max_tokens: got 0"),
        ('{"prompt": "x", "max_tokens": "9"}', "max_tokens: got '9'"),
    ],
)
def test_wrong_files_say_which_line(tmp_path, text, message):
    path = tmp_path / "asked.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        file_jobs(path, 1, outputs=Lengths(1, 1))
    with pytest.raises(ConfigError, match="cannot be read"):
        file_jobs(tmp_path / "none.jsonl", 1, outputs=Lengths(1, 1))


def test_goodput_counts_what_meets_every_goal():
    def sample(ttft_s: float, tpot_s: float, problem: str | None = None) -> Sample:
        arrivals = [ttft_s, ttft_s + 2 * tpot_s]
        return Sample(sent_s=0.0, arrivals=arrivals, done_s=2.0, output_tokens=3, problem=problem)

    samples = [sample(0.1, 0.01), sample(0.3, 0.01), sample(0.1, 0.2), sample(0.1, 0.01, "failed")]
    report = summarize(samples, read_goals(["ttft=200", "tpot=50"]))
    assert (report.good_requests_per_s, report.good_share) == (0.5, 0.25)
    assert summarize(samples).good_share is None


@pytest.mark.parametrize("text", ["ttft", "ttft=", "ttft=-1", "ttft=nan", "speed=3", "ttft=inf"])
def test_wrong_goals_are_refused(text):
    with pytest.raises(ConfigError, match="--goal"):
        read_goals([text])


async def test_burstiness_changes_the_distances_and_not_their_mean():
    from drivetrain_server.bench.traffic import _arrivals

    def distances(burstiness: float) -> list[float]:
        due = _arrivals(Load(model="m", rate=100.0, burstiness=burstiness), 4000)
        return [after - before for before, after in pairwise(due)]

    spread = {}
    for burstiness in (0.2, 1.0, 50.0):
        found = distances(burstiness)
        mean = sum(found) / len(found)
        assert mean == pytest.approx(0.01, rel=0.15)
        spread[burstiness] = (sum((gap - mean) ** 2 for gap in found) / len(found)) ** 0.5 / mean
    assert spread[0.2] > 1.8 and spread[1.0] == pytest.approx(1, abs=0.1) and spread[50.0] < 0.2
