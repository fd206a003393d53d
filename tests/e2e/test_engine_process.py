"""The engine as a process of its own: its client, and what becomes of it when its parent dies."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from drivetrain.config import EngineConfig
from drivetrain.errors import (
    Asleep,
    DrivetrainError,
    EngineDead,
    ModelNotFound,
    Overloaded,
    PromptTooLong,
    RequestError,
    UnknownBackend,
)
from drivetrain.messages import GenerateRequest
from drivetrain.process.client import ProcessEngine
from drivetrain.process.frames import HEADER, FromEngine, Ready
from drivetrain.sampling import SamplingParams
from fakes.serve_process import is_running

LIMIT_S = 60.0
PARENT = """
import subprocess, sys, time
path, config = sys.argv[1], bytes.fromhex(sys.argv[2])
worker = subprocess.Popen([sys.executable, "-m", "drivetrain.process.worker", path], stdin=subprocess.PIPE)
worker.stdin.write(len(config).to_bytes(4, "little") + config)
worker.stdin.flush()
print(worker.pid, flush=True)
time.sleep(600)
"""


def config_of(model: Path) -> EngineConfig:
    return EngineConfig(
        model=str(model),
        backend="cpu",
        dtype="float32",
        max_model_len=256,
        max_num_seqs=4,
        max_waiting=8,
        num_pages=100,
        backend_options={"cpu": {"threads": 1}},
    )


def request(request_id: str, **params: object) -> GenerateRequest:
    merged = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 200} | params
    prompt = list(range(5, 30))
    return GenerateRequest(request_id=request_id, prompt_ids=prompt, params=SamplingParams(**merged))  # type: ignore[arg-type]


async def answer(engine: ProcessEngine, wanted: GenerateRequest) -> dict[int, list[int]]:
    ids: dict[int, list[int]] = {}
    async for updates in engine.generate(wanted):
        for update in updates:
            ids.setdefault(update.index, []).extend(update.token_ids)
    return ids


async def quiet(engine: ProcessEngine) -> None:
    async with asyncio.timeout(LIMIT_S):
        while (await engine.stats()).running:
            await asyncio.sleep(0.01)


async def under_way(engine: ProcessEngine, name: str) -> asyncio.Task[dict[int, list[int]]]:
    """A request of 200 tokens that runs; asked again where it had ended before that was seen."""
    for attempt in range(20):
        task = asyncio.create_task(answer(engine, request(f"{name} {attempt}")))
        while not task.done():
            if (await engine.stats()).running:
                return task
    raise AssertionError("no request was seen running")


async def test_a_client_serves_many_and_cleans_up_after_each(tiny_model: Path) -> None:
    engine = ProcessEngine(config_of(tiny_model))
    with pytest.raises(EngineDead, match="not ready"):
        await anext(engine.generate(request("early")))
    assert (await engine.stats()).steps == 0
    await engine.start()
    try:
        assert engine.info is not None
        assert (engine.info.backend, engine.info.dtype, engine.failure) == ("cpu", "float32", None)
        order = ["read model", "find device", "open device", "load weights", "warm up"]
        assert [phase.name for phase in engine.phases if phase.finished] == order

        alone = await answer(engine, request("alone", max_tokens=12))
        together = await asyncio.gather(
            *(answer(engine, request(f"t{at}", max_tokens=12)) for at in range(3)),
            answer(engine, request("n", n=2, temperature=1.0, seed=1, max_tokens=5)),
        )
        assert together[:3] == [alone] * 3
        assert {index: len(ids) for index, ids in together[3].items()} == {0: 5, 1: 5}

        with pytest.raises(PromptTooLong, match="context of 256"):
            await answer(engine, GenerateRequest(request_id="long", prompt_ids=[5] * 300))
        with pytest.raises(Overloaded, match="the limit is 8") as full:
            await answer(engine, request("many", n=9))
        assert full.value.retry_after_s > 0
        with pytest.raises(RequestError, match="at least one token") as empty:
            await answer(engine, GenerateRequest(request_id="empty", prompt_ids=[]))
        assert empty.value.param == "prompt"

        async with aclosing(engine.generate(request("left"))) as stream:
            await anext(stream)
            with pytest.raises(DrivetrainError, match="'left' is already running"):
                await anext(engine.generate(request("left")))
            engine.abort("unknown")
        await quiet(engine)

        (await under_way(engine, "cancelled")).cancel()
        await quiet(engine)
        ended: dict[int, str | None] = {}
        for attempt in range(20):  # until the engine hears of it before it is done
            name = f"one of two {attempt}"
            async for updates in engine.generate(request(name, n=2, temperature=1.0)):
                engine.abort(name, 1)
                ended |= {update.index: update.finish_reason for update in updates if update.finish_reason}
            if ended[1] == "abort":
                break
        assert ended == {0: "length", 1: "abort"}

        stats = await engine.stats()
        assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
        assert stats.pages_cached > 0
        await engine.reset_prefix_cache()
        assert (await engine.stats()).pages_cached == 0

        await engine.sleep()
        with pytest.raises(Asleep, match="wake it"):
            await answer(engine, request("too early"))
        await engine.wake()

        running = await under_way(engine, "drained")
    finally:
        await engine.shutdown(drain_s=LIMIT_S)
    assert {index: len(ids) for index, ids in (await running).items()} == {0: 200}
    assert engine.info is None
    with pytest.raises(EngineDead, match="ended with status 0"):
        await answer(engine, request("late"))


async def test_settings_without_effect_and_the_memory_plan_are_logged_once_it_is_ready(
    tiny_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    config = replace(config_of(tiny_model), backend_options={"cpu": {"threads": 1}, "cpuu": {"threads": 1}})
    engine = ProcessEngine(config)
    try:
        await engine.start()
    finally:
        await engine.shutdown(drain_s=0.0)
    (told,) = [record.getMessage() for record in caplog.records if "backend_options" in record.getMessage()]
    assert told.startswith("[backend_options.cpuu] has no effect here: ")
    assert told.endswith("; did you mean 'cpu'?")
    (plan,) = [record.getMessage() for record in caplog.records if "memory plan" in record.getMessage()]
    assert plan.startswith(
        "KV cache: 1584 tokens in pages of 16; memory plan: memory of this machine or control group "
    )
    assert re.search(r"; pages [\d.]+[KM]iB$", plan)


async def test_an_unknown_backend_is_a_wrong_configuration(tiny_model: Path) -> None:
    engine = ProcessEngine(replace(config_of(tiny_model), backend="cpuu"))
    with pytest.raises(UnknownBackend, match="There is no backend 'cpuu'; did you mean 'cpu'"):
        await engine.start()
    await engine.shutdown(drain_s=0.0)


async def test_a_start_that_fails_tells_why_in_its_own_words(tmp_path: Path) -> None:
    engine = ProcessEngine(config_of(tmp_path / "absent"))
    with pytest.raises(ModelNotFound, match="absent"):
        await engine.start()
    assert engine.failure is not None
    assert "absent" in engine.failure
    await engine.shutdown(drain_s=0.0)


@pytest.mark.parametrize("moment", ["loading", "serving"])
def test_an_engine_whose_parent_is_killed_ends_by_itself(tiny_model: Path, tmp_path: Path, moment: str) -> None:
    path = tmp_path / "engine.sock"
    config = msgspec.json.encode(config_of(tiny_model)).hex()
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(path), config], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        worker = int(parent.stdout.readline())
    try:
        wait_for(path.exists)
        if moment == "serving":
            wait_for(lambda: is_serving(path))
        parent.send_signal(signal.SIGKILL)
        parent.wait(LIMIT_S)
        wait_for(lambda: not is_running(worker))
    finally:
        parent.kill()
        if is_running(worker):
            os.kill(worker, signal.SIGKILL)


def wait_for(check: object) -> None:
    limit = time.monotonic() + LIMIT_S
    while not check():  # type: ignore[operator]
        assert time.monotonic() < limit
        time.sleep(0.02)


def is_connected(connection: socket.socket, path: Path) -> bool:
    try:
        connection.connect(str(path))
    except ConnectionRefusedError:  # bound, and about to listen
        return False
    return True


def is_serving(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(LIMIT_S)
        if not is_connected(connection, path):
            return False
        with connection.makefile("rb") as stream:
            while header := stream.read(HEADER.size):
                message = msgspec.msgpack.decode(stream.read(HEADER.unpack(header)[0]), type=FromEngine)
                if isinstance(message, Ready):
                    return True
    return False


def test_who_connects_after_the_engine_has_failed_hears_why(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"
    config = msgspec.json.encode(config_of(tmp_path / "absent"))
    command = [sys.executable, "-m", "drivetrain.process.worker", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as worker:
        assert worker.stdin is not None
        worker.stdin.write(len(config).to_bytes(4, "little") + config)
        worker.stdin.flush()
        wait_for(path.exists)
        time.sleep(1.0)  # by now it has failed
        with socket.socket(socket.AF_UNIX) as connection:
            wait_for(lambda: is_connected(connection, path))
            with connection.makefile("rb") as told:
                assert b"ModelNotFound" in told.read()
        assert worker.wait(LIMIT_S) == 1
