"""The scheduler under random traffic: answers stay a pure function of the prompt, and nothing leaks."""

from __future__ import annotations

import random
from collections import Counter
from itertools import product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drivetrain.scheduler import SchedulerLimits
from fakes.scheduler_driver import Driver, Traffic

EVENTS = 2200
POLICIES = list(product((0, 1, 2), (False, True), (False, True), (False, True)))


def limits_for(
    rng: random.Random, *, overlap: int, mixed: bool, chunked: bool, cached: bool, tight: bool
) -> SchedulerLimits:
    page_size = rng.choice((1, 2, 4, 8))
    longest = 64
    row_pages = longest // page_size
    return SchedulerLimits(
        max_num_rows=rng.choice((2, 5, 8)),
        max_step_tokens=rng.choice((8, 12, 30)) if chunked else longest,
        max_model_len=longest,
        page_size=page_size,
        num_pages=row_pages * (2 if tight else 8) + 1,
        max_waiting=30,
        mixed_steps=mixed,
        max_prefills_per_step=rng.choice((None, None, 1, 2)),
        max_total_pages=rng.choice((None, row_pages, row_pages + 1, 2 * row_pages)),
        chunked_prefill=chunked,
        prefix_cache=cached,
        overlap=overlap,
        aging_s=0.2,
    )


@pytest.mark.parametrize("tight", [True, False], ids=["tight", "roomy"])
@pytest.mark.parametrize(("overlap", "mixed", "chunked", "cached"), POLICIES)
def test_random_traffic_gives_right_answers_and_leaks_nothing(
    overlap: int, mixed: bool, chunked: bool, cached: bool, tight: bool
) -> None:
    for seed in range(2):
        rng = random.Random(f"{overlap}{mixed}{chunked}{cached}{tight}{seed}")
        limits = limits_for(rng, overlap=overlap, mixed=mixed, chunked=chunked, cached=cached, tight=tight)
        traffic = Traffic(arrive=rng.choice((0.1, 0.3, 0.6)), fail=rng.choice((0.0, 0.01, 0.05)))
        driver = Driver(limits, traffic, rng)
        driver.run(EVENTS)
        assert driver.events >= EVENTS


def test_random_traffic_visits_every_case() -> None:
    seen: Counter[str] = Counter()
    for seed in range(8):
        rng = random.Random(seed)
        limits = limits_for(rng, overlap=seed % 2, mixed=True, chunked=True, cached=True, tight=True)
        driver = Driver(limits, Traffic(fail=0.03, abort=0.05), rng)
        driver.run(EVENTS)
        seen += driver.seen
    cases = {"stop", "length", "abort", "error", "fail oldest", "fail newest"}
    cases |= {"abort waiting 0", "abort running 0", "abort running 1", "abort preempted 0"}
    cases |= {"clear running", "overloaded", "hit", "chunk", "copy", "preempted", "preempted in flight"}
    cases |= {"held", "sat out", "sat out, penalized", "preempted, held"}
    cases |= {"left out", "shared beyond the limit"}
    assert cases <= {case for case, count in seen.items() if count}


@settings(max_examples=60, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    overlap=st.integers(0, 2),
    mixed=st.booleans(),
    chunked=st.booleans(),
    cached=st.booleans(),
    events=st.lists(st.sampled_from(("arrive", "abort", "step", "fail", "clear")), min_size=1, max_size=60),
)
def test_any_short_history_ends_clean(
    seed: int, overlap: int, mixed: bool, chunked: bool, cached: bool, events: list[str]
) -> None:
    rng = random.Random(seed)
    limits = limits_for(rng, overlap=overlap, mixed=mixed, chunked=chunked, cached=cached, tight=True)
    driver = Driver(limits, Traffic(fail=0.0), rng)
    for event in events:
        if event != "fail":
            getattr(driver, event)()
        elif driver.flying:
            driver.fail_one()
    driver.finish()
