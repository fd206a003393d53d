"""Drives a scheduler at random against the paged device, and checks every promise on the way."""

from __future__ import annotations

import random
from array import array
from collections import Counter, deque
from dataclasses import dataclass

from drivetrain.errors import Overloaded
from drivetrain.request import FinishReason, Request, Status
from drivetrain.sampling import SamplingParams
from drivetrain.scheduler import Schedule, Scheduler, SchedulerLimits
from fakes.paged_device import EOS, PagedDevice, Staged, expected_outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What comes in: probabilities per step, and sizes."""

    arrive: float = 0.4
    abort: float = 0.02
    fail: float = 0.01
    clear: float = 0.002
    hold: float = 0.05
    longest_prompt: int = 40
    longest_answer: int = 24
    num_prefixes: int = 3


class Driver:
    """One scheduler, one device, and everything that was ever asked for."""

    def __init__(self, limits: SchedulerLimits, traffic: Traffic, rng: random.Random) -> None:
        self.limits = limits
        self.traffic = traffic
        self.rng = rng
        self.now_s = 0.0
        self.scheduler = Scheduler(limits, clock=lambda: self.now_s)
        self.device = PagedDevice(limits.num_pages, limits.page_size, limits.max_num_rows)
        self.flying: deque[tuple[Schedule, Staged]] = deque()
        self.requests: dict[str, Request] = {}
        self.emitted: dict[str, list[int]] = {}
        self.ended: dict[str, FinishReason] = {}
        self.events = 0
        self.seen: Counter[str] = Counter()
        self.left_out: Counter[tuple[str, int]] = Counter()
        self.prefixes = [
            array("i", (rng.randrange(2, 40) for _ in range(traffic.longest_prompt)))
            for _ in range(traffic.num_prefixes)
        ]

    # -- events --------------------------------------------------------------------------------------------------

    def arrive(self) -> None:
        rng, traffic = self.rng, self.traffic
        if rng.random() < 0.8:
            prompt = rng.choice(self.prefixes)[: rng.randint(1, traffic.longest_prompt)]
        else:
            prompt = array("i", (rng.randrange(2, 40) for _ in range(rng.randint(1, traffic.longest_prompt))))
        if self.ended and rng.random() < 0.15:  # the next turn of a chat
            earlier = self.requests[rng.choice(list(self.ended))]
            prompt = (earlier.tokens + array("i", [5, 6, 7]))[: traffic.longest_prompt]
        num = rng.choice((1, 1, 1, 2, 4))
        max_tokens = rng.randint(1, traffic.longest_answer)
        params = SamplingParams(
            n=num,
            max_tokens=max_tokens if rng.random() < 0.9 else None,
            min_tokens=rng.randint(0, max_tokens) if rng.random() < 0.2 else 0,
            prompt_logprobs=1 if rng.random() < 0.1 else None,
            seed=rng.randrange(100),
            frequency_penalty=1.0 if rng.random() < 0.1 else 0.0,
        )
        priority, salt = rng.choice((0, 0, 0, -1, 2)), rng.choice((b"", b"", b"b"))
        eos = EOS if rng.random() < 0.8 else frozenset[int]()
        parent: Request | None = None
        for at in range(num):
            seeded = params if at == 0 else SamplingParams(seed=(params.seed or 0) + at, max_tokens=max_tokens)
            request = Request(
                request_id=f"r{len(self.requests)}",
                prompt_ids=prompt,
                params=seeded,
                priority=priority,
                arrival_s=self.now_s,
                eos_ids=eos,
                salt=salt,
                max_total=self.limits.max_model_len,
                parent=parent,
            )
            self.events += 1
            try:
                self.scheduler.add(request)
            except Overloaded as error:
                assert 1.0 <= error.retry_after_s <= 120.0
                self.seen["overloaded"] += 1
                return
            self.requests[request.request_id] = request
            self.emitted[request.request_id] = []
            parent = parent or request

    def abort(self) -> None:
        live = [name for name in self.requests if name not in self.ended]
        if not live:
            return
        name = self.rng.choice(live)
        if self.rng.random() < 0.2:  # rare, so seek it
            name = next((other for other in live if self.requests[other].status is Status.PREEMPTED), name)
        self.events += 1
        request = self.requests[name]
        self.seen[f"abort {request.status.value} {request.in_flight}"] += 1
        assert self.scheduler.abort(name)
        self.ended[name] = FinishReason.ABORT

    def clear(self) -> None:
        """An operator resets the prefix cache while requests run."""
        self.events += 1
        self.scheduler.clear_prefixes()
        stats = self.scheduler.stats()
        assert stats.pages_cached == 0
        self.seen["clear running" if stats.running else "clear idle"] += 1

    def step(self) -> None:
        """Schedules, then lands or fails what must come home."""
        self.now_s += 0.01
        self.events += 1
        for request in list(self.scheduler.held):
            if request.in_flight == 0 and self.rng.random() < 0.3:
                assert self.scheduler.release(request) is None
        schedule = self.scheduler.schedule()
        if schedule is None:
            assert self.flying or self.scheduler.held or not self.scheduler.has_work, "work is left, and nothing runs"
        else:
            self.check_schedule(schedule)
            staged = self.device.stage(schedule)
            self.flying.append((schedule, staged))
            if self.rng.random() < self.traffic.hold:
                self.hold(schedule, staged)
        if self.flying and self.rng.random() < self.traffic.fail:
            self.fail_one()
        elif self.flying and (schedule is None or len(self.flying) > self.limits.overlap or self.rng.random() < 0.2):
            self.land_one()

    def hold(self, schedule: Schedule, staged: Staged) -> None:
        """Some rows of a step get no further ones for a while; of those that decode, some sample in vain."""
        for row, on_device in self.rng.choices(list(zip(schedule.rows, staged.rows, strict=True)), k=2):
            request = row.request
            if not row.samples or request in self.scheduler.held or request in schedule.dropped:
                continue
            if row in schedule.rows[: schedule.num_decode_rows] and self.rng.random() < 0.7:
                self.scheduler.sit_out(schedule, request)
                on_device.seed += 1000  # any token
                self.seen["sat out, penalized" if request.params.penalized else "sat out"] += 1
            else:
                self.scheduler.hold(request)
                self.seen["held"] += 1

    def land_one(self) -> None:
        schedule, staged = self.flying.popleft()
        self.events += 1
        for landed in self.scheduler.land(schedule, self.device.run(staged)):
            name = landed.request.request_id
            assert name not in self.ended, f"{name} got tokens after its end"
            assert landed.new_token_ids
            self.emitted[name] += landed.new_token_ids
            if landed.finish_reason is not None:
                self.ended[name] = landed.finish_reason
        self.check_pages()

    def fail_one(self) -> None:
        self.events += 1
        if len(self.flying) > 1 and self.rng.random() < 0.3:  # it could not even be launched
            schedule, _ = self.flying.pop()
            self.seen["fail newest"] += 1
        else:
            schedule, staged = self.flying.popleft()
            self.device.spoil(staged)
            self.seen["fail oldest"] += 1
        blamed = self.rng.choice(schedule.rows).request if self.rng.random() < 0.5 else None
        for request in self.scheduler.fail(schedule, blamed):
            assert request.finish_reason is FinishReason.ERROR
            self.ended[request.request_id] = FinishReason.ERROR
        self.check_pages()

    def run(self, num_events: int) -> None:
        """Random traffic for so many events, then until everything is done; checks answers and pages at the end."""
        rng, traffic = self.rng, self.traffic
        while self.events < num_events:
            if rng.random() < traffic.arrive:
                self.arrive()
            if rng.random() < traffic.abort:
                self.abort()
            if rng.random() < traffic.clear:
                self.clear()
            self.step()
        self.finish()

    def finish(self) -> None:
        budget = 200 + 4 * self.limits.max_model_len * max(self.scheduler.num_waiting + self.limits.max_num_rows, 1)
        while self.scheduler.has_work:
            self.step()
            budget -= 1
            assert budget > 0, f"not done: {self.scheduler.stats()}"
        self.check_end()

    # -- promises ------------------------------------------------------------------------------------------------

    def check_schedule(self, schedule: Schedule) -> None:
        limits = self.limits
        rows = schedule.rows
        assert rows
        assert len(rows) <= limits.max_num_rows
        assert schedule.num_tokens == sum(row.num_tokens for row in rows) <= limits.max_step_tokens
        assert schedule.num_samples == sum(row.samples for row in rows)
        prefills = rows[schedule.num_decode_rows :]
        assert all(row.num_tokens == 1 and row.samples for row in rows[: schedule.num_decode_rows])
        if not limits.mixed_steps:
            assert schedule.num_decode_rows in (0, len(rows))
        if limits.max_prefills_per_step is not None:
            assert len(prefills) <= limits.max_prefills_per_step
        if limits.max_total_pages is not None:
            self.check_total_pages(schedule, limits.max_total_pages)
        owner = {row.slot: row.request for flying, _ in self.flying for row in flying.rows}
        slots: set[int] = set()
        for row in rows:
            request = row.request
            assert request.status is Status.RUNNING
            assert request not in self.scheduler.held, "a held request got a row"
            assert row.num_tokens > 0, "the last token is always computed"
            assert row.slot not in slots, "two rows share a slot"
            slots.add(row.slot)
            assert owner.get(row.slot, request) is request, "a slot was reused while its step is in flight"
            assert row.start + row.num_tokens <= len(request.pages) * limits.page_size
            assert row.start + row.num_tokens < request.length_limit, "scheduled past the limit"
            if row.admitted and request.params.prompt_logprobs is not None and request.parent is None:
                assert row.start == 0, "prompt logprobs need every position"
            if not limits.chunked_prefill:
                assert row.samples
            self.seen["hit"] += row.admitted and row.start > 0
            self.seen["chunk"] += not row.samples
        self.seen["copy"] += len(schedule.page_copies)
        self.seen["preempted, held"] += sum(request in self.scheduler.held for request in schedule.preempted)
        self.seen["preempted"] += len(schedule.preempted)
        self.seen["preempted in flight"] += sum(request.in_flight > 0 for request in schedule.preempted)

    def check_total_pages(self, schedule: Schedule, most: int) -> None:
        """What rows read, and what the device is told of new pages, stays within the limit; nobody waits for ever."""
        size = self.limits.page_size
        read = sum(-(-(row.start + row.num_tokens) // size) for row in schedule.rows)
        told = sum(row.num_new_pages for row in schedule.rows)
        assert max(read, told) <= schedule.num_pages <= most
        distinct = {page for row in schedule.rows for page in row.request.pages}
        self.seen["shared beyond the limit"] += read > len(distinct)
        if schedule.num_decode_rows:
            self.check_turns({row.request for row in schedule.rows})

    def check_turns(self, served: set[Request]) -> None:
        """Who could decode and is left out has its turn after the others at the latest."""
        for request in self.scheduler._running.decoding:  # pyright: ignore[reportPrivateUsage]
            able = request.num_computed < min(request.row_limit, request.capacity)
            life = request.request_id, request.num_preemptions
            self.left_out[life] = self.left_out[life] + 1 if able and request not in served else 0
            self.seen["left out"] += self.left_out[life] > 0
            assert self.left_out[life] < self.limits.max_num_rows, f"{request} is left out for ever"

    def check_pages(self) -> None:
        stats = self.scheduler.stats()
        sampling = Counter(
            row.request
            for schedule, _ in self.flying
            for row in schedule.rows
            if row.samples and row.request not in schedule.dropped
        )
        for name, request in self.requests.items():
            assert name in self.ended or request.in_flight == sampling[request]
        assert stats.pages_free + stats.pages_cached + stats.pages_used == stats.pages_total
        assert stats.running <= self.limits.max_num_rows
        if self.events % 8 == 0:
            holders = Counter(page for request in self.requests.values() for page in request.pages)
            pool = self.scheduler._kv.pool  # pyright: ignore[reportPrivateUsage]
            assert [pool.references(page) for page in range(pool.num_pages)] == [
                holders[page] for page in range(pool.num_pages)
            ]

    def check_end(self) -> None:
        stats = self.scheduler.stats()
        assert (stats.running, stats.waiting, stats.pages_used, stats.steps_in_flight) == (0, 0, 0, 0)
        assert stats.pages_free + stats.pages_cached == stats.pages_total
        self.check_pages()
        scheduler = self.scheduler
        slots = sorted(scheduler._running._slots)  # pyright: ignore[reportPrivateUsage]
        assert slots == list(range(self.limits.max_num_rows))
        for name, request in self.requests.items():
            outputs = self.emitted[name]
            reason = self.ended[name]
            assert outputs == list(request.output_ids), f"{name}: emitted differs from known"
            assert outputs == expected_outputs(request, len(outputs)), f"{name} ({reason}) is wrong"
            assert request.finish_reason is reason
            if reason is FinishReason.LENGTH:
                assert len(request.tokens) == request.length_limit
            if reason is FinishReason.STOP:
                assert outputs[-1] in request.eos_ids
                assert len(outputs) > request.params.min_tokens
            self.seen[reason.value] += 1
