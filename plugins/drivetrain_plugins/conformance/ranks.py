"""The collectives of several ranks, each in a process of its own: `python -m` this module with one JSON argument."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, cast

import torch

from drivetrain_plugins.conformance.check import Violation, require
from drivetrain_plugins.contract.backend import Backend, Device, RankInfo
from drivetrain_plugins.import_string import import_object

TIME_LIMIT_S = 120.0


def run_ranks(target: str, options: Mapping[str, Any], *, world: int, seed: int) -> None:
    """Start `world` processes that open the backend and check their collectives.

    Raises:
        Violation: a rank found a wrong result, failed or hung; the message has its last words.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    meeting = {"target": target, "options": dict(options), "world": world, "seed": seed}
    children = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps(meeting | {"rank": rank, "init": f"tcp://127.0.0.1:{port}"})],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    failures: list[str] = []
    for rank, child in enumerate(children):
        try:
            _, said = child.communicate(timeout=TIME_LIMIT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            _, said = child.communicate()
            failures.append(f"rank {rank} was not done after {TIME_LIMIT_S:g} s")
            continue
        if child.returncode != 0:
            last_words = (said.strip().splitlines() or ["it said nothing"])[-1]
            failures.append(f"rank {rank} ended with status {child.returncode}: {last_words}")
    require(not failures, "; ".join(failures))


def check_rank(device: Device, rank: int, world: int, seed: int) -> None:
    """Every collective as rank `rank`, on numbers that every rank knows.

    Raises:
        Violation: a result differs from what the other ranks' numbers make.
    """
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randint(-50, 50, (4 * world, 6), generator=generator).float() for _ in range(world)]
    communicator = device.communicator
    require((communicator.rank, communicator.world) == (rank, world), f"communicator: expected rank {rank} of {world}")

    def mine() -> torch.Tensor:
        return inputs[rank].to(device.torch_device, copy=True)

    def same(name: str, got: torch.Tensor, expected: torch.Tensor) -> None:
        device.runtime.synchronize()
        require(
            got.cpu().equal(expected), f"communicator.{name}: rank {rank} of {world} got other values than expected"
        )

    total = torch.stack(inputs).sum(dim=0)
    same("all_reduce", communicator.all_reduce(mine()), total)
    same("all_gather, last dimension", communicator.all_gather(mine()), torch.cat(inputs, dim=-1))
    same("all_gather, first dimension", communicator.all_gather(mine(), dim=0), torch.cat(inputs, dim=0))
    same("reduce_scatter", communicator.reduce_scatter(mine()), total.chunk(world)[rank])
    parts = [inputs[rank][: to + 1].to(device.torch_device) for to in range(world)]
    for source, got in enumerate(communicator.all_to_all(parts)):
        same("all_to_all", got, inputs[source][: rank + 1])
    same("broadcast", communicator.broadcast(mine(), world - 1), inputs[world - 1])
    if rank == 0:
        communicator.send(mine(), 1)
    elif rank == 1:
        same("recv", communicator.recv(torch.zeros_like(mine()), 0), inputs[0])
    communicator.barrier()


def main(argument: str) -> None:
    """Open the backend as one rank and check it."""
    meeting = json.loads(argument)
    made = cast("type[Backend]", import_object(meeting["target"]))
    rank, world = meeting["rank"], meeting["world"]
    info = RankInfo(rank=rank, world=world, local_rank=rank, init_method=meeting["init"], timeout_s=TIME_LIMIT_S / 2)
    device = made().open(info, meeting["options"])
    try:
        check_rank(device, rank, world, meeting["seed"])
    finally:
        device.close()


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Violation as error:
        sys.exit(str(error))
