"""What is kept of responses, and what makes room."""

from __future__ import annotations

import socket

import msgspec

from drivetrain_server.fleet.channel import Channel
from drivetrain_server.fleet.frames import FromMember, Keep, Recalled, ToMember
from drivetrain_server.response_shelves import MAX_ONE_BYTES, ResponseShelves


def test_the_one_used_longest_ago_makes_room() -> None:
    shelves = ResponseShelves(max_kept=3, max_bytes=4000)
    for at in range(4):
        shelves.keep("t", f"r{at}", b"x" * 10)
    assert shelves.recall("t", "r1") == b"x" * 10
    shelves.keep("t", "big", b"x" * 3990)
    shelves.keep("t", "too big", b"x" * 4001)
    assert shelves.recall("t", "big") == b"x" * 3990
    assert shelves.recall("t", "r1") == b"x" * 10
    for gone in ("r0", "r2", "r3", "too big"):
        assert shelves.recall("t", gone) is None


def test_a_busy_key_drives_out_its_own_responses_alone() -> None:
    shelves = ResponseShelves(max_kept=4, max_bytes=4000)
    shelves.keep("quiet", "r", b"quiet")
    for at in range(20):
        shelves.keep("busy", f"r{at}", b"%d" % at)
    assert shelves.recall("quiet", "r") == b"quiet"
    assert [shelves.recall("busy", f"r{at}") for at in (17, 18, 19)] == [b"17", b"18", b"19"]
    assert shelves.recall("busy", "r16") is None


def test_a_key_sees_and_forgets_its_own_alone() -> None:
    shelves = ResponseShelves()
    shelves.keep("one", "r", b"mine")
    assert (shelves.recall("two", "r"), shelves.forget("two", "r")) == (None, None)
    assert (shelves.forget("one", "r"), shelves.forget("one", "r"), shelves.recall("one", "r")) == (b"mine", None, None)


def test_what_nobody_asks_for_is_forgotten_after_a_time() -> None:
    now = 0.0
    shelves = ResponseShelves(max_idle_s=100, clock=lambda: now)
    shelves.keep("t", "used", b"1")
    shelves.keep("t", "idle", b"2")
    now = 60.0
    assert shelves.recall("t", "used") == b"1"
    now = 100.0
    assert (shelves.recall("t", "idle"), shelves.recall("t", "used")) == (None, b"1")
    now = 200.0
    assert shelves.recall("t", "used") is None
    shelves.keep("u", "r", b"3")
    assert list(shelves._shelves) == ["u"]


def test_room_is_that_of_all_keys_and_comes_back() -> None:
    shelves = ResponseShelves(max_bytes=1000)
    for key in ("a", "b"):
        shelves.keep(key, "r", b"x" * 400)
    shelves.forget("a", "r")
    shelves.keep("c", "r", b"x" * 600)
    assert [shelves.recall(key, "r") for key in "abc"] == [None, b"x" * 400, b"x" * 600]
    shelves.keep("b", "s", b"x")
    assert shelves.recall("c", "r") is None
    assert shelves.recall("b", "r") == b"x" * 400


async def test_the_largest_response_goes_from_one_process_to_another() -> None:
    ours, theirs = socket.socketpair()
    sender = await Channel[ToMember].open(ours, msgspec.msgpack.Decoder(ToMember))
    receiver = await Channel[FromMember].open(theirs, msgspec.msgpack.Decoder(FromMember))
    raw = b"x" * MAX_ONE_BYTES
    sender.send(Keep("key", "r", raw))
    assert await receiver.receive() == Keep("key", "r", raw)
    receiver.send(Recalled(raw))
    assert await sender.receive() == Recalled(raw)
    await sender.close()
    await receiver.close()
