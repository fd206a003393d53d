"""The step loop: schedule a step, start it, and take in the results of the one before."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.batch import BatchBuilder
from drivetrain.completions import completions_of
from drivetrain.errors import Asleep, DrivetrainError, EngineError, OutOfMemory, RequestError, Unsupported
from drivetrain.grammar.masks import MaskMaker
from drivetrain.in_flight import StepInFlight, newest_tokens
from drivetrain.live_requests import LiveRequests
from drivetrain.messages import EngineInfo, EngineStats, GenerateRequest, Update
from drivetrain.pooling import check_embeds
from drivetrain.reports import Reports
from drivetrain.request import FinishReason, Request
from drivetrain.sampling import SamplingParams, check_served
from drivetrain.scheduler import Landed, Schedule, Scheduler
from drivetrain_plugins.contract.capabilities import EVERY_SAMPLING_FEATURE, SamplingFeature

if TYPE_CHECKING:
    from drivetrain.grammar.compiler import CompiledGrammar, GrammarCompiler
    from drivetrain_plugins.contract.executor import Executor

_SLEEPING_PAGES = 2
_HELD_WAIT_S = 0.005
"""How long `step` waits where all requests wait for their masks."""


@dataclass(slots=True)
class _Counts:
    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: int = 0
    failed: int = 0
    aborted: int = 0
    step_s: float = 0.0
    schedule_s: float = 0.0


class Engine:
    """One model on one executor. Not thread-safe: one thread submits, aborts and steps.

    Args:
        end_ids: the model's end tokens.
        overlap: run one step ahead of the results.
        sampling: what the device's sampler serves.
        grammars: compiles what requests demand of their answers; None refuses such requests.
        seed: where the seeds of requests without one come from.
    """

    def __init__(
        self,
        *,
        executor: Executor,
        scheduler: Scheduler,
        builder: BatchBuilder,
        info: EngineInfo,
        end_ids: frozenset[int],
        overlap: bool,
        sampling: Collection[SamplingFeature] = EVERY_SAMPLING_FEATURE,
        grammars: GrammarCompiler | None = None,
        seed: int = 0,
    ) -> None:
        self.info = info
        self._sampling = sampling
        self._executor = executor
        self._scheduler = scheduler
        self._builder = builder
        # Some models name end tokens that their embedding has no row for; those are never sampled.
        self._end_ids = frozenset(end_id for end_id in end_ids if end_id < info.vocab_size)
        self._grammars = grammars
        self._masks = MaskMaker(info.vocab_size, self._end_ids)
        self._depth = 1 if overlap else 0
        self._seeds = random.Random(seed)
        self._live = LiveRequests()
        self._reports = Reports()
        self._in_flight: deque[StepInFlight] = deque()
        self._counts = _Counts()
        self._landed_s = 0.0
        self._pending: list[Update] = []
        self._asleep = False

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._in_flight or self._live or self._pending)

    def is_live(self, request_id: str) -> bool:
        """Whether some completion of the request has not ended."""
        return request_id in self._live

    @property
    def grammars(self) -> GrammarCompiler | None:
        """Compiles grammars, in any thread, so that `submit` finds them compiled."""
        return self._grammars

    def submit(self, request: GenerateRequest) -> None:
        """Queue a request; its grammar is compiled first, unless it is known.

        Raises:
            Overloaded: the waiting queue is full.
            Asleep: the engine sleeps.
            RequestError: it can never be served; names the field.
        """
        if self._asleep:
            raise Asleep("the engine sleeps; wake it before it takes requests")
        if request.request_id in self._live:
            raise RequestError(f"request_id: {request.request_id!r} is already running", param="request_id")
        check_served(request.params, self._sampling, self.info.device)
        if request.embeds:
            check_embeds(self.info)
        completions = completions_of(
            request,
            self.info,
            end_ids=self._end_ids,
            seed=self._seeds.getrandbits(64) if request.params.seed is None else request.params.seed,
            grammar=self._compiled(request.params),
        )
        for index, completion in completions.items():
            try:
                self._scheduler.add(completion)
            except DrivetrainError:
                for added in range(index):
                    self._scheduler.abort(completions[added].request_id)
                raise
        self._live.add(request.request_id, completions, deadline_s=request.deadline_s)
        if request.params.prompt_logprobs is not None:
            self._reports.begin(completions[0])
        self._counts.prompt_tokens += len(request.prompt_ids)

    def abort(self, request_id: str, index: int | None = None, *, error: str | None = None) -> None:
        """End a request, or one of its completions; its pages come back once no step in flight uses them.

        Each ended completion brings an update with finish reason "abort". Unknown ids are left alone: the request may
        just have finished.
        """
        live = self._live.completions(request_id)
        for which in list(live) if index is None else [index]:
            completion = live.get(which)
            if completion is not None:
                self._scheduler.abort(completion.request_id)
                self._counts.aborted += 1
                self._end(completion)
                self._pending.append(Update(request_id=request_id, index=which, finish_reason="abort", error=error))

    def step(self) -> list[Update]:
        """Start the next step, take in the oldest one under way if there is one too many, and return what is new.

        Raises:
            DeviceLost: the device is gone; the engine cannot go on.
        """
        for request_id in self._live.overdue():
            self.abort(request_id, error="the request ran past its time limit")
        if self._scheduler.held:
            self._release_ready()
        started = time.perf_counter()
        schedule = self._scheduler.schedule()
        if schedule is not None:
            self._start(schedule, started)
        updates, self._pending = self._pending, []
        if schedule is None and not self._in_flight and not updates and self._scheduler.held:
            self._masks.wait(_HELD_WAIT_S)
        if self._in_flight and (schedule is None or len(self._in_flight) > self._depth):
            self._land(self._in_flight.popleft(), updates)
        return updates

    def prepare_more(self) -> bool:
        """Let the device make later steps faster while nobody waits; call it while there is no work.

        Returns:
            Whether there is more to do.
        """
        return not self.has_work and not self._asleep and self._executor.prepare_more()

    def sleep(self) -> None:
        """Forget every prefix and give the memory of the KV pages back. Weights and recordings stay.

        Raises:
            EngineError: requests are under way.
            Unsupported: the device's number of pages is fixed.
        """
        if self.has_work:
            raise EngineError(
                f"{len(self._live)} requests are under way; wait for them or abort them before the engine sleeps"
            )
        if self._asleep:
            return
        self._scheduler.clear_prefixes()
        self._executor.set_pages(_SLEEPING_PAGES)
        self._asleep = True

    def wake(self) -> None:
        """Take the memory of the KV pages again.

        Raises:
            OutOfMemory: somebody else has taken it; the engine goes on sleeping.
        """
        if self._asleep:
            self._executor.set_pages(self.info.num_pages)
            self._asleep = False

    def reset_prefix_cache(self) -> None:
        """Forget every cached prefix. Pages that requests use stay theirs, and are free once those end."""
        self._scheduler.clear_prefixes()

    def stats(self) -> EngineStats:
        """Gauges and counters of this moment."""
        scheduler, counts = self._scheduler.stats(), self._counts
        return EngineStats(
            running=scheduler.running,
            waiting=scheduler.waiting,
            pages_total=scheduler.pages_total,
            pages_free=scheduler.pages_free,
            pages_cached=scheduler.pages_cached,
            pages_used=scheduler.pages_used,
            preemptions=scheduler.preemptions,
            held=scheduler.held,
            awaiting_pages=scheduler.awaiting_pages,
            held_for_masks=scheduler.held_for_masks,
            held_for_pages=scheduler.held_for_pages,
            prefix_hit_tokens=scheduler.prefix_hit_tokens,
            prefix_query_tokens=scheduler.prefix_queried_tokens,
            steps=counts.steps,
            prompt_tokens=counts.prompt_tokens,
            generated_tokens=counts.generated_tokens,
            finished=counts.finished,
            failed=counts.failed,
            aborted=counts.aborted,
            step_s=counts.step_s,
            schedule_s=counts.schedule_s,
        )

    def close(self) -> None:
        """Wait for steps under way and free the device."""
        while self._in_flight:
            self._in_flight.popleft().ticket.wait()
        self._masks.close()
        self._executor.close()

    def _compiled(self, params: SamplingParams) -> CompiledGrammar | None:
        if params.grammar is None:
            return None
        if self._grammars is None:
            raise RequestError("grammar: this engine knows no tokens as text; leave it out", param="grammar")
        return self._grammars.compile(params.grammar)

    def _start(self, schedule: Schedule, started: float) -> None:
        batch = self._builder.build(schedule)
        if batch.features.masks:
            sampled = [row for row in schedule.rows if row.samples]
            batch.masks = self._masks.masks_of(
                sampled,
                newest=lambda: newest_tokens(self._in_flight),
                sit_out=lambda request: self._scheduler.sit_out(schedule, request),
            )
            for row in sampled:
                if row.request.matcher is not None and row.request.matcher.pace.waits:
                    self._scheduler.hold(row.request)
        launched = time.perf_counter()
        self._counts.schedule_s += launched - started
        self._counts.steps += 1
        try:
            ticket = self._executor.execute(batch)
        except (OutOfMemory, Unsupported) as error:
            # At once, not in its turn: what the step told of slots and page tables may not have reached the device, so
            # that a later step of the same requests would write into pages of others.
            self._fail(schedule, error, self._pending)
            return
        self._in_flight.append(StepInFlight(schedule, ticket, launched, batch.features.masks))

    def _land(self, step: StepInFlight, updates: list[Update]) -> None:
        try:
            output = step.wait()
        except OutOfMemory as error:
            self._fail(step.schedule, error, updates)
            return
        finally:
            # A step launched ahead begins when the one before it ends.
            now = time.perf_counter()
            self._counts.step_s += now - max(step.launched_s, self._landed_s)
            self._landed_s = now
        schedule, counts, reports, owners = step.schedule, self._counts, self._reports, self._live.owners
        reports.take(schedule, output)
        places = {} if output.logprobs is None else step.places()
        if step.masked:
            self._masks.land((request, token) for request, token in step.tokens(output) if request.matcher is not None)
        for landed in self._scheduler.land(schedule, output.token_ids.tolist() if schedule.num_samples else []):
            request, reason, token_ids = landed.request, landed.finish_reason, landed.new_token_ids
            owner = owners.get(request)
            if owner is None:
                continue
            counts.generated_tokens += len(token_ids)
            if reason is None and not request.reports_scores:
                request_id, index = owner
                updates.append(
                    Update(
                        request_id=request_id,
                        index=index,
                        token_ids=token_ids,
                        num_cached_tokens=request.num_cached_tokens,
                        queued_s=request.queued_s,
                    )
                )
                continue
            updates.append(reports.report(owner, landed, output, places.get(request, -1)))
            if reason is not None:
                self._conclude(request, reason)

    def _release_ready(self) -> None:
        """Let those go on whose masks are made by now, or end them where their grammar has."""
        for request in list(self._scheduler.held):
            if request.in_flight or not self._masks.is_ready(request):
                continue
            reason = self._scheduler.release(request)
            if reason is not None:
                self._pending.append(self._reports.report(self._live.owners[request], Landed(request, [], reason)))
                self._conclude(request, reason)

    def _fail(self, schedule: Schedule, error: DrivetrainError, updates: list[Update]) -> None:
        """A step had no memory or is not served: the request with the most tokens fails, others are computed again."""
        blamed = max(schedule.rows, key=lambda row: row.num_tokens).request
        for failed in self._scheduler.fail(schedule, blamed):
            owner = self._live.owners.get(failed)
            if owner is not None:
                request_id, index = owner
                updates.append(Update(request_id=request_id, index=index, finish_reason="error", error=str(error)))
                self._counts.failed += 1
                self._end(failed)

    def _conclude(self, request: Request, reason: FinishReason) -> None:
        failed = reason is FinishReason.ERROR
        self._counts.failed += failed
        self._counts.finished += not failed
        self._end(request)

    def _end(self, request: Request) -> None:
        self._live.remove(request)
        self._reports.forget(request)
