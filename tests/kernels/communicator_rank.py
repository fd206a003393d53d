"""One rank of the communicator's test: runs a scenario, prints one line that says how it went."""

from __future__ import annotations

import sys
import time

import torch

from drivetrain_cpu.communicator import GlooCommunicator
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.errors import CommunicatorError


def every_collective(group: GlooCommunicator) -> None:
    """Each call's result, checked against what the ranks put in."""
    rank = group.rank
    mine = torch.arange(4, dtype=torch.float32).view(2, 2) + 10 * rank
    other = mine + 10 - 20 * rank
    expected_sum = mine + other
    for dtype in (torch.float32, torch.bfloat16):
        x = mine.to(dtype, copy=True)
        assert group.all_reduce(x) is x
        assert torch.equal(x, expected_sum.to(dtype))
    wide = torch.zeros(2, 4)
    view = wide[:, ::2]
    view.copy_(mine)
    group.all_reduce(view)
    assert torch.equal(wide[:, ::2], expected_sum)
    assert torch.equal(wide[:, 1::2], torch.zeros(2, 2))
    ordered = [mine, other] if rank == 0 else [other, mine]
    assert torch.equal(group.all_gather(mine), torch.cat(ordered, dim=-1))
    assert torch.equal(group.all_gather(mine, dim=0), torch.cat(ordered, dim=0))
    assert torch.equal(group.reduce_scatter(mine), expected_sum[rank : rank + 1])
    assert torch.equal(group.reduce_scatter(mine, dim=1), expected_sum[:, rank : rank + 1])
    parts = [torch.full((rank + 1, peer + 2), float(10 * rank + peer)) for peer in range(2)]
    received = group.all_to_all(parts)
    for peer, part in enumerate(received):
        assert torch.equal(part, torch.full((peer + 1, rank + 2), float(10 * peer + rank)))
    sent = torch.full((3,), float(rank))
    assert torch.equal(group.broadcast(sent, source=1), torch.ones(3))
    if rank == 0:
        group.send(torch.tensor([7.0, 8.0]), destination=1)
    else:
        assert torch.equal(group.recv(torch.zeros(2), source=0), torch.tensor([7.0, 8.0]))
    group.barrier()


def main() -> None:
    scenario, rank, port, timeout_s = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    begin = time.monotonic()
    try:
        group = GlooCommunicator(
            RankInfo(rank=rank, world=2, init_method=f"tcp://127.0.0.1:{port}", timeout_s=timeout_s)
        )
        if scenario == "every":
            every_collective(group)
        elif scenario == "dies" and rank == 1:
            return
        elif scenario == "hangs" and rank == 1:
            time.sleep(timeout_s + 2)
            return
        else:
            group.all_reduce(torch.ones(4))
        group.close()
    except CommunicatorError as error:
        print(f"CommunicatorError after {time.monotonic() - begin:.1f} s: {error}")
    else:
        print("done")


if __name__ == "__main__":
    main()
