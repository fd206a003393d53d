"""The process that checks grammars: whatever one does to it, the others are checked."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from drivetrain.errors import EngineError, Overloaded, RequestError, ShareUsed
from drivetrain.grammar import Grammar, check_process, checker
from drivetrain.grammar.checker import GrammarChecker
from drivetrain.grammar.frames import Verdict
from drivetrain.grammar.turns import Turns
from fakes.tiny_grammars import tiny_tokenizer
from hostile_grammars import LARKS
from tiny_tokenizers import write_byte_level_folder


@pytest.fixture
def checking(tmp_path: Path) -> Iterator[GrammarChecker]:
    made = GrammarChecker(write_byte_level_folder(tmp_path), lambda: tiny_tokenizer().vocab_size)
    yield made
    made.close()


async def test_the_process_imports_nothing_from_the_folder_that_it_is_started_in(
    checking: GrammarChecker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "msgspec.py").write_text("raise SystemExit('a file of that name lay here')\n")
    monkeypatch.chdir(folder)
    await checking.check(Grammar(kind="json_schema", value='{"type": "integer"}'))


def pid_of(checking: GrammarChecker) -> int:
    assert checking._process is not None
    return checking._process.pid


async def test_good_ones_pass_and_bad_ones_are_refused_with_the_reason(checking: GrammarChecker) -> None:
    await checking.check(Grammar(kind="json_schema", value='{"type": "integer"}'))
    for _ in range(2):
        with pytest.raises(RequestError, match='^grammar: the schema keyword "not" is not supported$') as caught:
            await checking.check(Grammar(kind="json_schema", value='{"not": {}}'))
        assert caught.value.param == "grammar"
    with pytest.raises(RequestError, match="unclosed group"):
        await checking.check(Grammar(kind="regex", value="(é"))


async def test_what_was_checked_is_remembered_and_a_dead_process_is_replaced(checking: GrammarChecker) -> None:
    first = Grammar(kind="regex", value="a+")
    await checking.check(first)
    dead = pid_of(checking)
    os.kill(dead, signal.SIGKILL)
    await checking.check(first)
    assert pid_of(checking) == dead
    await checking.check(Grammar(kind="regex", value="b+"))
    assert pid_of(checking) != dead


async def test_one_that_overflows_the_stack_ends_its_fork_alone(checking: GrammarChecker) -> None:
    await checking.check(Grammar(kind="regex", value="a"))
    before = pid_of(checking)
    with pytest.raises(RequestError, match="more memory, or deeper nesting, than is allowed; simplify it"):
        await checking.check(Grammar(kind="lark", value=LARKS["chain of rules that overflows a stack"]))
    await checking.check(Grammar(kind="regex", value="b"))
    assert pid_of(checking) == before


async def test_one_that_takes_too_long_is_given_up(checking: GrammarChecker) -> None:
    properties = {f"property_{at}": {"type": "string"} for at in range(7000)}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    with pytest.raises(RequestError, match="compiling it takes more than 2 s of processor time; simplify it"):
        await checking.check(Grammar(kind="json_schema", value=json.dumps(schema)))


async def test_one_that_a_busy_machine_had_no_time_for_is_not_condemned(
    checking: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given up at the limit of wall time, it may be sent again, and then passes."""
    grammar = Grammar(kind="regex", value="a{3}")
    busy = check_process._verdict_on(signal.SIGALRM, 0.3)
    assert not busy.lasting
    asked: list[Grammar] = []

    def ask(wanted: Grammar) -> Verdict:
        asked.append(wanted)
        return busy if len(asked) == 1 else Verdict()

    monkeypatch.setattr(checking, "_ask", ask)
    with pytest.raises(Overloaded, match=r"given up after 20 s, .* gave it 0\.3 s of processor time; 2 s are allowed"):
        await checking.check(grammar)
    await checking.check(grammar)
    await checking.check(grammar)
    assert asked == [grammar, grammar]


@pytest.mark.parametrize(
    ("signal_number", "lasting", "words"),
    [
        (signal.SIGXCPU, True, "takes more than 2 s of processor time; simplify it"),
        (signal.SIGSEGV, True, "takes more memory, or deeper nesting, than is allowed; simplify it"),
        (signal.SIGABRT, True, "takes more memory, or deeper nesting, than is allowed; simplify it"),
        (0, True, "takes more memory, or deeper nesting, than is allowed; simplify it"),
        (
            signal.SIGKILL,
            False,
            "was ended from outside, perhaps for want of memory; try again later",
        ),
    ],
)
def test_only_what_the_grammar_itself_did_lasts(signal_number: int, lasting: bool, words: str) -> None:
    verdict = check_process._verdict_on(signal_number, 1.0)
    assert (verdict.error, verdict.lasting) == (f"grammar: compiling it {words}", lasting)


def test_a_fork_is_ended_at_the_limit_of_wall_time() -> None:
    script = (
        "import time\n"
        "from drivetrain.grammar import Grammar, check_process\n"
        "check_process.MAX_WALL_S = 1\n"
        "check_process.compile_grammar = lambda grammar, vocabulary: time.sleep(30)\n"
        "verdict = check_process.check(Grammar(kind='regex', value='a'), None)\n"
        "print(verdict.lasting, verdict.error)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=25).stdout
    assert said.startswith("False grammar: compiling it was given up after 1 s, of which this busy machine gave it 0.")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux holds a process to a size of its address space")
def test_a_fork_gets_no_more_memory_than_its_limit() -> None:
    """One that asks for half of it passes, one that asks for twice of it is refused for good."""
    script = (
        "from drivetrain.grammar import Grammar, check_process\n"
        "grammar = Grammar(kind='regex', value='a')\n"
        "for size in (check_process.MAX_BYTES // 2, 2 * check_process.MAX_BYTES):\n"
        "    check_process.compile_grammar = lambda grammar, vocabulary: bytearray(size)\n"
        "    verdict = check_process.check(grammar, None)\n"
        "    print(verdict.lasting, verdict.error)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.splitlines() == [
        "True None",
        "True grammar: compiling it takes more memory, or deeper nesting, than is allowed; simplify it",
    ]


async def test_the_oldest_verdicts_are_forgotten(checking: GrammarChecker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "_MAX_KEPT", 2)
    asked: list[str] = []

    def ask(wanted: Grammar) -> Verdict:
        asked.append(wanted.value)
        return Verdict()

    monkeypatch.setattr(checking, "_ask", ask)
    for value in ("a", "b", "a", "c", "b", "c", "a"):
        await checking.check(Grammar(kind="regex", value=value))
    assert asked == ["a", "b", "c", "a"]


async def test_only_so_many_wait(checking: GrammarChecker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checker, "_MAX_WAITING", 3)
    asked = [checking.check(Grammar(kind="regex", value="a" * count)) for count in range(1, 7)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(result) for result in results] == [type(None)] * 3 + [Overloaded] * 3


async def test_one_owner_fills_its_part_alone_and_delays_others_by_one(
    checking: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker, "_MAX_OF_ONE", 3)
    order: list[str] = []

    def ask(grammar: Grammar) -> Verdict:
        time.sleep(0.01)
        order.append(grammar.value)
        return Verdict()

    monkeypatch.setattr(checking, "_ask", ask)
    greedy = [asyncio.create_task(checking.check(Grammar(kind="regex", value=f"g{at}"), "greedy")) for at in range(5)]
    await asyncio.sleep(0)
    other = asyncio.create_task(checking.check(Grammar(kind="regex", value="o"), "other"))
    results = await asyncio.gather(*greedy, other, return_exceptions=True)
    assert [type(result) for result in results] == [*[type(None)] * 3, ShareUsed, ShareUsed, type(None)]
    assert "3 grammars of this key wait to be checked" in str(results[3])
    assert order == ["g0", "g1", "o", "g2"]
    await checking.check(Grammar(kind="regex", value="again"), "greedy")


async def test_callers_without_a_key_share_all_places(
    checking: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checker, "_MAX_OF_ONE", 1)
    monkeypatch.setattr(checking, "_ask", lambda grammar: Verdict())
    await asyncio.gather(*(checking.check(Grammar(kind="regex", value="a" * count)) for count in range(1, 9)))


async def test_the_same_grammar_from_many_is_checked_once(
    checking: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Grammar] = []

    def ask(grammar: Grammar) -> Verdict:
        asked.append(grammar)
        return Verdict()

    monkeypatch.setattr(checking, "_ask", ask)
    await asyncio.gather(*(checking.check(Grammar(kind="regex", value="a"), f"key {at % 3}") for at in range(12)))
    assert len(asked) == 1


async def test_those_that_leave_pass_their_turn_on() -> None:
    turns, order = Turns(), list[str]()

    async def take(owner: str, name: str) -> None:
        async with turns.turn(owner):
            order.append(name)
            await asyncio.sleep(0.001)

    tasks = [asyncio.create_task(take(owner, f"{owner}{at}")) for owner in "ab" for at in range(3)]
    await asyncio.sleep(0)
    tasks[0].cancel()  # is inside
    tasks[1].cancel()  # waits
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks[3].cancel()  # may have been given the turn just now
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order[0] == "a0" and sorted(set(order) - {"b0"}) == ["a0", "a2", "b1", "b2"]
    assert (turns.total, turns.count("a"), turns.count("b")) == (0, 0, 0)
    await asyncio.wait_for(take("c", "c0"), 1)


async def test_a_process_that_cannot_start_is_an_error_of_the_server(tmp_path: Path) -> None:
    broken = GrammarChecker(tmp_path / "nothing", lambda: 9)
    with pytest.raises(EngineError, match="ends by itself"):
        await broken.check(Grammar(kind="regex", value="a"))
    broken.close()
