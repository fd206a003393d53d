"""What comes off the connection to an engine: split anywhere, in order, several steps at once."""

from __future__ import annotations

import asyncio
import random

import msgspec

from drivetrain.errors import DrivetrainError, EngineDead
from drivetrain.messages import EngineStats, GenerateRequest, Update
from drivetrain.process.frames import Died, FromEngine, Ready, Stats, Submit, ToEngine, Updates, frame
from drivetrain.process.link import EngineLink, TokenLine
from drivetrain.process.receiver import FrameReceiver
from drivetrain.sampling import SamplingParams
from fakes.engine import INFO


class Recorder:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, int, list[int]]] = []
        self.error: DrivetrainError | None = None

    def line(self, index: int) -> TokenLine:
        return lambda token_id, now: self.heard.append(("line", index, [token_id]))

    def take(self, updates: list[Update]) -> None:
        self.heard += [("take", update.index, update.token_ids) for update in updates]

    def fail(self, error: DrivetrainError) -> None:
        self.error = error

    def tokens(self, index: int = 0) -> list[int]:
        return [token for _, which, tokens in self.heard if which == index for token in tokens]


def linked(*names: str, n: int = 1) -> tuple[EngineLink, dict[str, Recorder]]:
    link = EngineLink()
    link._take([Ready(INFO)])
    sinks = {name: Recorder() for name in names}
    for name, sink in sinks.items():
        link.attach(GenerateRequest(request_id=name, prompt_ids=[1], params=SamplingParams(n=n)), sink)
    return link, sinks


def update(name: str, *tokens: int, index: int = 0, ends: bool = False) -> Update:
    reason = "length" if ends else None
    return Update(request_id=name, index=index, token_ids=list(tokens), finish_reason=reason)


def test_one_step_is_told_line_by_line() -> None:
    link, sinks = linked("a", "b", n=2)
    link._take([Updates([update("b", 7, 8, index=1)], [0, 1, 2, 99], [10, 11, 12, 13])])
    assert sinks["a"].heard == [("line", 0, [10]), ("line", 1, [11])]
    assert sinks["b"].heard == [("take", 1, [7, 8]), ("line", 0, [12])]


async def test_a_large_step_lets_others_in_between_and_keeps_its_order() -> None:
    names = [f"r{at}" for at in range(300)]
    link, sinks = linked(*names)

    def heard() -> int:
        return sum(len(sink.heard) for sink in sinks.values())

    lines = list(range(300))
    link._take([Updates([], lines, [at + 1000 for at in lines])])
    assert heard() == 128
    await asyncio.sleep(0)
    assert heard() == 256
    link._take([Updates([], lines, [at + 2000 for at in lines])])
    assert heard() == 300 + 128, "what was left came before the next step"
    for _ in range(4):
        await asyncio.sleep(0)
    assert [sinks[name].tokens() for name in names] == [[at + 1000, at + 2000] for at in lines]


def test_several_steps_at_once_come_together_and_in_order() -> None:
    link, sinks = linked("a", "b")
    steps: list[FromEngine] = [
        Updates([update("a", 1)]),
        Updates([], [0, 1], [2, 20]),
        Updates([], [0, 1], [3, 30]),
        Updates([update("a", 4, ends=True)], [1], [40]),
    ]
    link._take(steps)
    assert sinks["a"].heard == [("take", 0, [1]), ("take", 0, [2, 3]), ("take", 0, [4])]
    assert sinks["b"].heard == [("take", 0, [20, 30, 40])]


def test_steps_before_and_after_another_message_keep_their_order() -> None:
    link, sinks = linked("a")
    link._take([Updates([], [0], [1]), Stats(EngineStats()), Updates([], [0], [2]), Updates([], [0], [3])])
    assert sinks["a"].heard == [("line", 0, [1]), ("take", 0, [2, 3])]


def test_a_detached_request_hears_nothing_more() -> None:
    link, sinks = linked("a", "b")
    link.detach("a")
    link._take([Updates([update("a", 1, 2)], [0, 1], [5, 6])])
    link._take([Updates([], [0, 1], [5, 6]), Updates([], [0, 1], [7, 8])])
    assert sinks["a"].heard == []
    assert sinks["b"].tokens() == [6, 6, 8]


def test_numbers_of_lines_are_never_given_twice() -> None:
    link, _ = linked("a", "b", n=3)
    link.detach("a")
    late = Recorder()
    link.attach(GenerateRequest(request_id="c", prompt_ids=[1], params=SamplingParams()), late)
    link._take([Updates([], [0, 6], [1, 2])])
    assert late.heard == [("line", 0, [2])]


async def test_frames_cut_anywhere_arrive_whole() -> None:
    encoder = msgspec.msgpack.Encoder()
    sent = [Updates([update("a", at)], [at], [at + 1]) for at in range(50)]
    raw = b"".join(frame(encoder, message) for message in sent)
    for seed in range(20):
        rng, seen = random.Random(seed), list[FromEngine]()
        receiver = FrameReceiver(seen.extend)
        at = 0
        while at < len(raw):
            size = rng.randrange(1, 200)
            receiver.data_received(raw[at : at + size])
            at += size
        assert seen == sent


async def test_a_frame_that_cannot_be_read_is_the_engines_last_word() -> None:
    seen: list[FromEngine] = []
    receiver = FrameReceiver(seen.extend)
    good = frame(msgspec.msgpack.Encoder(), Updates([]))
    receiver.data_received(good + b"\x03\x00\x00\x00\xc1\xc1\xc1")
    assert seen == [Updates([])]
    assert isinstance(receiver.last_words, Died)
    assert "could not be read" in receiver.last_words.message
    huge = FrameReceiver(seen.extend)
    huge.data_received(b"\xff\xff\xff\xff")
    assert huge.last_words is not None and "more than a frame may have" in huge.last_words.message


def test_an_ended_answer_is_not_asked_for_again_when_its_engine_starts_again() -> None:
    link, sinks = linked("whole", "cut", "new")
    link._take([Updates([update("whole", 7, ends=True), update("cut", 8)], [], [])])
    link._disconnected(EngineDead("gone"), keep_unstarted=True)
    assert sinks["whole"].error is None
    assert isinstance(sinks["cut"].error, EngineDead)
    written: list[ToEngine] = []
    link._write = written.append  # type: ignore[method-assign]
    link._take([Ready(INFO)])
    assert [message.request.request_id for message in written if isinstance(message, Submit)] == ["new"]
