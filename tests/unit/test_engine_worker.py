"""The engine process's loop over real sockets: who gets what, and what happens when a frontend goes or hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from drivetrain.engine import Engine
from drivetrain.errors import DeviceLost
from drivetrain.messages import GenerateRequest, Phase, Update
from drivetrain.process import frontends
from drivetrain.process.frames import (
    HEADER,
    Abort,
    Died,
    Progress,
    Ready,
    Refused,
    ResetPrefixCache,
    Shutdown,
    Sleep,
    Slept,
    Submit,
    Updates,
    raised,
)
from drivetrain.process.worker import Worker
from drivetrain.sampling import SamplingParams
from fakes.tiny_engine import run, tiny_engine
from fakes.waiting import LIMIT_S, until
from fakes.worker import FrontendConnection, listening_worker


def request(request_id: str, **params: object) -> GenerateRequest:
    merged = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 8} | params
    prompt = list(range(20, 40))
    return GenerateRequest(request_id=request_id, prompt_ids=prompt, params=SamplingParams(**merged))  # type: ignore[arg-type]


class Running:
    """A worker that serves a small engine in a thread; `run` ends in `error` or without."""

    def __init__(self, worker: Worker, path: Path) -> None:
        self.path = path
        self.worker = worker
        self.error: BaseException | None = None
        self.engine: Engine | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.frontends: list[FrontendConnection] = []
        self.go_on = threading.Event()

    def serve(self, engine: Engine, *, stop_after: int | None = None) -> None:
        """Serve; so many steps after the last request, none gets further until `go_on` is set. Messages are read."""
        step, submit, done = engine.step, engine.submit, 0

        def held_step() -> list[Update]:
            nonlocal done
            if done == stop_after and not self.go_on.is_set():
                time.sleep(0.001)
                return []
            done += 1
            return step()

        def noted_submit(request: GenerateRequest) -> None:
            nonlocal done
            submit(request)
            done = 0

        if stop_after is not None:
            engine.step, engine.submit = held_step, noted_submit  # type: ignore[method-assign]
        self.engine = engine
        self.thread.start()

    def connect(self, *, ready: bool = True) -> FrontendConnection:
        frontend = FrontendConnection(self.path)
        self.frontends.append(frontend)
        if ready:
            frontend.until(lambda message: isinstance(message, Ready))
        return frontend

    def join(self) -> None:
        self.thread.join(LIMIT_S)
        assert not self.thread.is_alive()

    def _run(self) -> None:
        assert self.engine is not None
        try:
            self.worker.run(self.engine)
        except BaseException as error:
            self.error = error
            self.worker.die(error)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Running]:
    path = tmp_path / "engine.sock"
    with listening_worker(path) as worker:
        running = Running(worker, path)
        yield running
        running.go_on.set()
        if running.thread.is_alive():
            running.connect().send(Shutdown(0.0))
            running.join()
        for frontend in running.frontends:
            frontend.connection.close()


def test_each_frontend_gets_the_answers_of_its_own_requests(served: Running) -> None:
    served.serve(tiny_engine())
    one, two = served.connect(), served.connect()
    one.send(Submit(request("a")))
    two.send(Submit(request("b", n=2, temperature=1.0, seed=3)))
    mine = one.answer("a")
    expected = run(tiny_engine(), [request("a"), request("b", n=2, temperature=1.0, seed=3)])
    assert [token for update in mine for token in update.token_ids] == expected["a", 0][0]
    theirs = two.until(lambda message: isinstance(message, Updates) and all(u.finish_reason for u in message.updates))
    updates = [update for message in theirs if isinstance(message, Updates) for update in message.updates]
    assert {update.request_id for update in updates} == {"b"}
    for index in (0, 1):
        assert [t for update in updates if update.index == index for t in update.token_ids] == expected["b", index][0]


def test_a_frontend_that_comes_late_is_told_every_phase_and_that_the_engine_is_ready(served: Running) -> None:
    served.worker.tell_progress(Phase(name="weights", done=1.0, total=2.0))
    early = served.connect(ready=False)
    served.worker.tell_progress(Phase(name="weights", done=2.0, total=2.0, finished=True))
    served.worker.tell_progress(Phase(name="warm up", finished=True))
    served.serve(tiny_engine())
    assert any(isinstance(message, Ready) for message in early.until(lambda message: isinstance(message, Ready)))
    *phases, ready = served.connect(ready=False).until(lambda message: isinstance(message, Ready))
    told = [(message.phase.name, message.phase.finished) for message in phases if isinstance(message, Progress)]
    assert told == [("weights", True), ("warm up", True)]
    assert isinstance(ready, Ready)
    assert served.engine is not None
    assert ready.info == served.engine.info


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"prompt_ids": [9] * 300}, "PromptTooLong", "context of 256 tokens"),
        ({"prompt_ids": []}, "RequestError", "at least one token"),
        ({"priority": 1000}, "RequestError", "priority: expected -100 to 100"),
        ({"request_id": "busy"}, "RequestError", "already running"),
        ({"params": SamplingParams(n=9)}, "Overloaded", "the limit is 3"),
    ],
)
def test_a_refused_request_is_told_why_and_the_others_go_on(
    served: Running, changes: dict[str, object], kind: str, words: str
) -> None:
    served.serve(tiny_engine(max_waiting=3), stop_after=4)
    frontend = served.connect()
    frontend.send(Submit(request("busy", max_tokens=60)))
    frontend.send(Submit(replace(request("bad"), **changes)))  # type: ignore[arg-type]
    refused = frontend.until(lambda message: isinstance(message, Refused))[-1]
    assert isinstance(refused, Refused)
    assert (refused.request_id, refused.kind) == (changes.get("request_id", "bad"), kind)
    assert words in str(raised(refused))
    served.go_on.set()
    assert frontend.answer("busy")[-1].finish_reason == "length"


def test_a_frontend_that_leaves_takes_its_requests_with_it(served: Running) -> None:
    served.serve(tiny_engine(), stop_after=6)
    stays, leaves = served.connect(), served.connect()
    stays.send(Submit(request("mine", max_tokens=200)))
    for name in ("a", "b"):
        leaves.send(Submit(request(name, max_tokens=200)))
    until(lambda: stays.stats().stats.running == 3)
    leaves.connection.close()
    until(lambda: stays.stats().stats.running == 1)
    assert served.engine is not None
    assert not served.engine.is_live("a")
    assert not served.engine.is_live("b")
    stays.send(Abort("mine"))
    served.go_on.set()
    assert stays.answer("mine")[-1].finish_reason == "abort"
    stats = stays.stats().stats
    assert (stats.running, stats.pages_used) == (0, 0)


def test_a_frontend_that_stops_reading_is_given_up(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frontends, "SEND_TIMEOUT_S", 0.2)
    monkeypatch.setattr(frontends, "_SEND_BUFFER_BYTES", 4096)
    served.serve(tiny_engine())
    stuck, healthy = served.connect(), served.connect()
    for turn in range(20):
        stuck.send(Submit(request(f"s{turn}", max_tokens=230, logprobs=20)))
    healthy.send(Submit(request("h", max_tokens=20)))
    assert healthy.answer("h")[-1].finish_reason == "length"
    until(lambda: healthy.stats().stats.running == 0)
    stats = healthy.stats().stats
    assert stats.waiting == 0
    assert stats.finished < 21, "its requests were ended, not finished into nowhere"
    assert stats.pages_used == 0


def test_a_frontend_that_sends_rubbish_loses_its_connection_only(
    served: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    served.serve(tiny_engine())
    healthy = served.connect()
    for rubbish in (HEADER.pack(3) + b"\xc1\xc1\xc1", HEADER.pack(2**32 - 1), HEADER.pack(2) + b"\x91\x05"):
        frontend = served.connect()
        frontend.connection.sendall(rubbish)
        assert frontend.receive() is None
    healthy.send(Submit(request("a")))
    assert healthy.answer("a")[-1].finish_reason == "length"
    assert "a frontend's connection broke" in capsys.readouterr().err


def test_the_prefix_cache_is_reset_on_demand_also_while_a_request_runs(served: Running) -> None:
    served.serve(tiny_engine())
    frontend = served.connect()
    frontend.send(Submit(request("a")))
    frontend.answer("a")
    assert frontend.stats().stats.pages_cached > 0
    frontend.send(Submit(request("b", max_tokens=200)))
    frontend.until(lambda message: isinstance(message, Updates))
    frontend.send(ResetPrefixCache())
    assert frontend.answer("b")[-1].finish_reason == "length"


def test_an_engine_sleeps_only_when_nothing_runs(served: Running) -> None:
    served.serve(tiny_engine(), stop_after=4)
    frontend = served.connect()
    frontend.send(Submit(request("a", max_tokens=100)))
    frontend.until(lambda message: isinstance(message, Updates))
    frontend.send(Sleep())
    busy = frontend.until(lambda message: isinstance(message, Slept))[-1]
    assert isinstance(busy, Slept) and busy.kind == "EngineError" and "1 requests are under way" in busy.message
    served.go_on.set()
    frontend.answer("a")
    frontend.send(Sleep())
    frontend.send(Submit(request("b")))
    asleep, refused = frontend.until(lambda message: isinstance(message, Refused))[-2:]
    assert asleep == Slept()
    assert isinstance(refused, Refused) and refused.kind == "Asleep"
    frontend.send(Sleep(wake=True))
    frontend.send(Submit(request("c")))
    assert frontend.answer("c")[-1].finish_reason == "length"


def test_draining_finishes_what_runs_and_refuses_what_comes(served: Running) -> None:
    served.serve(tiny_engine(), stop_after=4)
    frontend = served.connect()
    frontend.send(Submit(request("a", max_tokens=100)))
    frontend.until(lambda message: isinstance(message, Updates))
    frontend.send(Shutdown(LIMIT_S))
    frontend.send(Submit(request("late")))
    refused = frontend.until(lambda message: isinstance(message, Refused))[-1]
    assert isinstance(refused, Refused)
    assert (refused.request_id, refused.kind) == ("late", "Draining")
    served.go_on.set()
    assert frontend.answer("a")[-1].finish_reason == "length"
    served.join()
    assert served.error is None


def test_when_the_time_to_drain_is_over_requests_end_with_the_reason(served: Running) -> None:
    served.serve(tiny_engine(), stop_after=4)
    frontend = served.connect()
    frontend.send(Submit(request("a", max_tokens=230)))
    frontend.until(lambda message: isinstance(message, Updates))
    frontend.send(Shutdown(0.0))
    served.go_on.set()
    last = frontend.answer("a")[-1]
    assert (last.finish_reason, last.error) == ("abort", "the server is shutting down")
    served.join()
    assert served.engine is not None
    assert served.engine.stats().pages_used == 0


def test_a_lost_device_is_told_to_every_frontend(served: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = tiny_engine()

    def lost() -> list[Update]:
        raise DeviceLost("device 0 fell off the bus")

    monkeypatch.setattr(engine, "step", lost)
    served.serve(engine)
    one, two = served.connect(), served.connect()
    one.send(Submit(request("a")))
    for frontend in (one, two):
        died = frontend.until(lambda message: isinstance(message, Died))[-1]
        assert died == Died("DeviceLost", "device 0 fell off the bus")
    served.join()
    assert isinstance(served.error, DeviceLost)


def test_tokens_that_come_alone_travel_as_pairs_of_line_and_token(served: Running) -> None:
    served.serve(tiny_engine())
    frontend = served.connect()
    frontend.send(Submit(request("a", n=2, temperature=1.0, seed=3), 40))
    frontend.send(Submit(request("b", logprobs=1), 70))
    frontend.send(Submit(request("c")))
    live, lines = {("a", 0), ("a", 1), ("b", 0), ("c", 0)}, dict[int, list[int]]()
    whole: dict[tuple[str, int], list[int]] = {}
    while live:
        message = frontend.receive()
        assert isinstance(message, Updates)
        for line, token_id in zip(message.lines, message.token_ids, strict=True):
            lines.setdefault(line, []).append(token_id)
            whole["a", line - 40].append(token_id)
        for update in message.updates:
            whole.setdefault((update.request_id, update.index), []).extend(update.token_ids)
            if update.finish_reason is not None:
                live.discard((update.request_id, update.index))
    assert set(lines) == {40, 41}, "not those with log-probabilities, and not those without a line"
    assert {line: len(tokens) for line, tokens in lines.items()} == {40: 6, 41: 6}, "all but the first and the last"
    requests = [request("a", n=2, temperature=1.0, seed=3), request("b", logprobs=1), request("c")]
    expected = run(tiny_engine(), requests)
    assert whole == {key: answer[0] for key, answer in expected.items()}


def test_one_frontend_can_neither_double_nor_end_the_request_of_another(served: Running) -> None:
    served.serve(tiny_engine(), stop_after=4)
    first, second = served.connect(), served.connect()
    first.send(Submit(request("same", max_tokens=200)))
    first.until(lambda message: isinstance(message, Updates))
    second.send(Submit(request("same")))
    refused = second.until(lambda message: isinstance(message, Refused))[-1]
    assert isinstance(refused, Refused)
    assert "already running" in refused.message
    second.send(Abort("same"))
    assert second.stats().stats.running == 1
    served.go_on.set()
    assert first.answer("same")[-1].finish_reason == "length"
