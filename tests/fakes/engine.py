"""An engine that says what it was told to say, and remembers what it was asked."""

from __future__ import annotations

import asyncio
import struct
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from msgspec import structs

from drivetrain.client import Sink
from drivetrain.errors import DrivetrainError, EngineDead
from drivetrain.messages import EngineInfo, EngineStats, GenerateRequest, Phase, TokenLogprob, Update
from fakes.text import END, VOCAB_SIZE

INFO = EngineInfo(
    model="tiny",
    architecture="TinyForCausalLM",
    backend="fake",
    device="none",
    dtype="float32",
    vocab_size=VOCAB_SIZE,
    max_model_len=4096,
    num_pages=64,
    page_size=16,
    max_num_rows=8,
    max_step_tokens=512,
    kv_bytes=1 << 20,
    weight_bytes=1 << 20,
    pooling="mean",
    embedding_size=8,
    embedding_dimensions=None,
    loaded_bytes=5_000_000,
    num_parameters=1_234_567,
)

Script = Callable[[GenerateRequest, int], list[int]]


def says(text: str) -> Script:
    """Every completion is this text and an end token."""
    return lambda request, index: [*text.encode(), END]


class FakeEngine:
    """An `EngineClient` without a model.

    Attributes:
        script: token ids of each completion, by request and index.
        batch: tokens an update.
        pause_s: between updates.
        gate_at: completions stop before this token until `open_gate`; None is no gate.
        num_at_gate: how many requests have come to it.
        refuse: raised instead of an answer.
        die_at: the engine dies before this token.
        fail_at: each request fails before this token.
        cached: prompt tokens that count as cached.
        queued_s: how long requests say they have waited.
    """

    def __init__(self, script: Script | None = None) -> None:
        self.script = script or says("Hello there!")
        self.batch = 1
        self.pause_s = 0.0
        self.gate_at: int | None = None
        self.refuse: DrivetrainError | None = None
        self.die_at: int | None = None
        self.fail_at: int | None = None
        self.cached = 0
        self.queued_s = 0.0
        self.start_gate: threading.Event | None = None
        self.start_error: DrivetrainError | None = None
        self.requests: list[GenerateRequest] = []
        self.aborted: list[str] = []
        self.index_aborts: list[tuple[str, int | None]] = []
        self.finished: list[str] = []
        self.waiting_at_gate = threading.Event()
        self.num_at_gate = 0
        self.abort_seen = threading.Event()
        self.was_shut_down = False
        self._gate = threading.Event()
        self._info: EngineInfo | None = None
        self._failure: str | None = None
        self._live: dict[str, set[int]] = {}
        self._attached: dict[str, asyncio.Task[None]] = {}

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    @property
    def failure(self) -> str | None:
        return self._failure

    @property
    def phases(self) -> list[Phase]:
        done = self._info is not None
        return [Phase(name="weights", done=1.0, total=2.0, unit="GB", finished=done)]

    async def start(self) -> None:
        while self.start_gate is not None and not self.start_gate.is_set():
            await asyncio.sleep(0.005)
        if self.start_error is not None:
            raise self.start_error
        self._info = INFO

    def open_gate(self) -> None:
        """Let completions that wait go on."""
        self._gate.set()

    def die(self, reason: str) -> None:
        """End, as a crashed engine process does."""
        self._failure = reason
        self._info = None

    def attach(self, request: GenerateRequest, sink: Sink) -> None:
        self._attached[request.request_id] = asyncio.get_running_loop().create_task(self._feed(request, sink))

    def detach(self, request_id: str) -> None:
        self._attached.pop(request_id).cancel()

    async def _feed(self, request: GenerateRequest, sink: Sink) -> None:
        """As a connection to an engine process does it: tokens that come alone go by their lines."""
        silent = set(range(request.params.n))
        try:
            async with aclosing(self.generate(request)) as updates:
                async for batch in updates:
                    for update in batch:
                        alone = len(update.token_ids) == 1 and update.finish_reason is None and update.logprobs is None
                        if alone and update.index not in silent:
                            sink.line(update.index)(update.token_ids[0], time.perf_counter())
                        else:
                            silent.discard(update.index)
                            sink.take([update])
                    await asyncio.sleep(0)
        except DrivetrainError as error:
            sink.fail(error)

    def abort(self, request_id: str, index: int | None = None) -> None:
        self.index_aborts.append((request_id, index))
        live = self._live.get(request_id, set())
        if index is None:
            live.clear()
        else:
            live.discard(index)

    async def stats(self) -> EngineStats:
        used = len(self._live)
        return EngineStats(
            running=used, pages_total=64, pages_free=54 - used, pages_cached=10, pages_used=used, steps=7
        )

    async def reset_prefix_cache(self) -> None:
        pass

    def launch(self) -> None:
        pass

    def abandon(self) -> None:
        pass

    async def sleep(self) -> None:
        pass

    async def wake(self) -> None:
        pass

    async def shutdown(self, *, drain_s: float) -> None:
        self.was_shut_down = True

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[list[Update], None]:
        self.requests.append(request)
        if self.refuse is not None:
            raise self.refuse
        if request.embeds:
            yield [self._embedded(request)]
            return
        scripts = [self._limited(request, index) for index in range(request.params.n)]
        live = self._live[request.request_id] = set(range(request.params.n))
        complete = False
        try:
            for at in range(0, max(map(len, scripts)), self.batch):
                await self._wait(at)
                updates = [
                    self._update(request, index, ids, at)
                    for index, ids in enumerate(scripts)
                    if index in live and at < len(ids)
                ]
                live.difference_update(update.index for update in updates if update.finish_reason is not None)
                if updates:
                    yield updates
                if self.pause_s:
                    await asyncio.sleep(self.pause_s)
            complete = True
        finally:
            if complete or not live:
                self.finished.append(request.request_id)
            else:
                self.aborted.append(request.request_id)
                self.abort_seen.set()
            del self._live[request.request_id]

    def _embedded(self, request: GenerateRequest) -> Update:
        """Its numbers are the first eight token ids of the prompt, then zeros."""
        if self.fail_at is not None:
            return Update(request_id=request.request_id, finish_reason="error", error="page 7 was lost")
        numbers = (request.prompt_ids + [0] * 8)[:8]
        return Update(
            request_id=request.request_id,
            finish_reason="stop",
            num_cached_tokens=self.cached,
            queued_s=self.queued_s,
            embedding=struct.pack("<8f", *numbers),
        )

    async def _wait(self, at: int) -> None:
        if self.gate_at is not None and at >= self.gate_at:
            self.num_at_gate += not self._gate.is_set()
            self.waiting_at_gate.set()
            while not self._gate.is_set():
                if self._failure is not None:
                    raise EngineDead(f"the engine ended: {self._failure}")
                await asyncio.sleep(0.002)
        if self.die_at is not None and at >= self.die_at:
            self.die("killed by signal 9")
        if self._failure is not None:
            raise EngineDead(f"the engine ended: {self._failure}")

    def _limited(self, request: GenerateRequest, index: int) -> list[int]:
        params = request.params
        ids: list[int] = []
        for token in self.script(request, index):
            if token == END and params.ignore_eos:
                continue
            ids.append(token)
            if len(ids) == params.max_tokens or token == END or token in params.stop_token_ids:
                break
        return ids

    def _update(self, request: GenerateRequest, index: int, ids: list[int], at: int) -> Update:
        params = request.params
        new = ids[at : at + self.batch]
        last = at + self.batch >= len(ids)
        stopped = last and (new[-1] == END or new[-1] in params.stop_token_ids)
        update = Update(
            request_id=request.request_id,
            index=index,
            token_ids=new,
            logprobs=None if params.logprobs is None else [_entry(token, params.logprobs) for token in new],
            prompt_logprobs=self._prompt_logprobs(request) if at == 0 and index == 0 else None,
            finish_reason=("stop" if stopped else "length") if last else None,
            stop_token_id=new[-1] if stopped else None,
            num_cached_tokens=self.cached,
            queued_s=self.queued_s,
        )
        if self.fail_at is not None and at >= self.fail_at:
            return structs.replace(update, token_ids=[], logprobs=None, finish_reason="error", error="page 7 was lost")
        return update

    def _prompt_logprobs(self, request: GenerateRequest) -> list[TokenLogprob | None] | None:
        top = request.params.prompt_logprobs
        if top is None:
            return None
        return [None, *(_entry(token, top) for token in request.prompt_ids[1:])]


def _entry(token: int, top: int) -> TokenLogprob:
    """Log-probability -token/100, and the next ids as the likeliest after it."""
    others = [((token + 1 + i) % 256, -1.0 - i) for i in range(top)]
    return TokenLogprob(token_id=token, logprob=-token / 100, rank=1, top=others)
