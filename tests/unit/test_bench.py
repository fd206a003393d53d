"""The load test: what it sends, what it counts, what it refuses to call a result."""

from __future__ import annotations

import pytest

from drivetrain_server.bench.report import distribution, summarize
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


async def test_every_request_is_timed_and_counted():
    load = Load(model="m", num_requests=6, concurrency=2, input_tokens=5, output_tokens=3)
    answer = Answer(stream(5, 3, cached=2), pause_s=0.002)
    async with sse_server(lambda *_: answer) as server:
        samples = await drive(Endpoint(url=server.url), load)
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
    load = Load(model="m", num_requests=3, input_tokens=8, output_tokens=1, shared_prefix=6, vocab_size=500, seed=7)
    async with sse_server(lambda *_: Answer(stream(8, 1))) as server:
        await drive(Endpoint(url=server.url), load)
    bodies = [body for *_, body in server.requests]
    assert sorted(body["prompt"] for body in bodies) == sorted(load.prompts())
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
        (Answer(events({"error": {"message": "boom"}})), "the stream ended with an error: {'message': 'boom'}"),
        (Answer(stream(5, 3)[:1], cut=True), "the server broke off in the middle of its answer"),
    ],
)
async def test_what_is_not_a_fair_result_is_a_failure_with_its_reason(answer, problem):
    load = Load(model="m", num_requests=2, input_tokens=5, output_tokens=3)
    async with sse_server(lambda *_: answer) as server:
        report = summarize(await drive(Endpoint(url=server.url), load))
    assert (report.succeeded, report.failed) == (0, 2)
    assert report.problems == {problem: 2}
    assert report.ttft_ms is None


async def test_rate_spaces_arrivals_out():
    load = Load(model="m", num_requests=5, concurrency=5, rate=200.0, input_tokens=1, output_tokens=1)
    async with sse_server(lambda *_: Answer(stream(1, 1))) as server:
        samples = await drive(Endpoint(url=server.url), load)
    sent = sorted(sample.sent_s for sample in samples)
    assert sent[-1] - sent[0] > 0.001


async def test_an_arrival_that_has_to_wait_waits_on_the_clock():
    load = Load(model="m", num_requests=4, concurrency=1, rate=1000.0, input_tokens=1, output_tokens=1)
    async with sse_server(lambda *_: Answer(stream(1, 1), pause_s=0.03)) as server:
        samples = await drive(Endpoint(url=server.url), load)
    assert server.most_open == 1
    waits = sorted(sample.ttft_s for sample in samples)
    assert waits[0] >= 0.03
    assert waits[-1] >= 0.09, "the last one stood behind three others"


async def test_arrivals_are_not_bounded_without_a_concurrency():
    load = Load(model="m", num_requests=12, concurrency=None, rate=10_000.0, input_tokens=1, output_tokens=1)
    async with sse_server(lambda *_: Answer(stream(1, 1), pause_s=0.2)) as server:
        samples = await drive(Endpoint(url=server.url), load)
    assert server.most_open == 12
    assert all(sample.problem is None for sample in samples)


def test_percentiles_are_nearest_rank():
    spread = distribution([0.001 * i for i in range(1, 101)])
    assert spread is not None
    assert (spread.p50, spread.p90, spread.p99, spread.max) == pytest.approx((50, 90, 99, 100))
    assert spread.mean == pytest.approx(50.5)
    assert distribution([]) is None


def test_time_per_token_counts_tokens_not_events():
    sample = Sample(sent_s=0.0, arrivals=[1.0, 2.0], done_s=2.0, input_tokens=1, output_tokens=5)
    assert sample.tpot_s == pytest.approx(0.25)
    assert sample.itl_s == [1.0]
    assert sample.ttft_s == 1.0
