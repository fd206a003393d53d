"""One rank of the communicators' tests: runs a scenario, prints one line that says how it went."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import torch

from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.communicator import Communicator
from drivetrain_plugins.errors import CommunicatorError


def equal(got: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether a result, wherever it is, holds what a tensor on the host holds."""
    return torch.equal(got.cpu(), expected)


def every_collective(group: Communicator, device: torch.device) -> None:
    """Each call's result, checked against what the ranks put in."""
    rank = group.rank
    mine = torch.arange(4, dtype=torch.float32).view(2, 2) + 10 * rank
    other = mine + 10 - 20 * rank
    expected_sum = mine + other
    put = mine.to(device)
    for dtype in (torch.float32, torch.bfloat16):
        x = put.to(dtype, copy=True)
        assert group.all_reduce(x) is x
        assert equal(x, expected_sum.to(dtype))
    wide = torch.zeros(2, 4, device=device)
    view = wide[:, ::2]
    view.copy_(put)
    group.all_reduce(view)
    assert equal(wide[:, ::2], expected_sum)
    assert equal(wide[:, 1::2], torch.zeros(2, 2))
    ordered = [mine, other] if rank == 0 else [other, mine]
    assert equal(group.all_gather(put), torch.cat(ordered, dim=-1))
    assert equal(group.all_gather(put, dim=0), torch.cat(ordered, dim=0))
    assert equal(group.reduce_scatter(put), expected_sum[rank : rank + 1])
    assert equal(group.reduce_scatter(put, dim=1), expected_sum[:, rank : rank + 1])
    parts = [torch.full((rank + 1, peer + 2), float(10 * rank + peer), device=device) for peer in range(2)]
    received = group.all_to_all(parts)
    for peer, part in enumerate(received):
        assert equal(part, torch.full((peer + 1, rank + 2), float(10 * peer + rank)))
    sent = torch.full((3,), float(rank), device=device)
    assert equal(group.broadcast(sent, source=1), torch.ones(3))
    if rank == 0:
        group.send(torch.tensor([7.0, 8.0], device=device), destination=1)
    else:
        assert equal(group.recv(torch.zeros(2, device=device), source=0), torch.tensor([7.0, 8.0]))
    group.barrier()


def recorded_collectives(group: Communicator, device: torch.device) -> None:
    """Collectives in a graph, replayed with eager ones in between."""
    from drivetrain_cuda.faults import CUDA_FAULTS
    from drivetrain_triton.device.runtime import StreamRuntime

    runtime = StreamRuntime(device, CUDA_FAULTS)
    x = torch.zeros(64, device=device)
    gathered = torch.zeros(128, device=device)

    def step() -> None:
        group.all_reduce(x)
        gathered.copy_(group.all_gather(x))

    step()
    replay = runtime.capture(step)
    for turn in range(20):
        x.fill_(float(turn + group.rank))
        replay()
        assert equal(gathered, torch.full((128,), 2.0 * turn + 1))
        assert equal(group.all_reduce(torch.ones(3, device=device)), torch.full((3,), 2.0))


def meeting(kind: str) -> Callable[[RankInfo], tuple[Communicator, torch.device]]:
    """What gives this rank's communicator, and where its tensors are; all that it imports is imported."""
    if kind == "gloo":
        from drivetrain_cpu.communicator import GlooCommunicator

        return lambda info: (GlooCommunicator(info), torch.device("cpu"))
    if kind == "sockets":
        from drivetrain_opencl.communicator import SocketCommunicator

        return lambda info: (SocketCommunicator(info), torch.device("cpu"))
    from drivetrain_cuda.plugin import drivetrain_backends
    from drivetrain_triton.device.communicator import NcclCommunicator

    os.environ.update(drivetrain_backends()[0].environment)

    def meet(info: RankInfo) -> tuple[Communicator, torch.device]:
        device = torch.device("cuda", info.rank)
        torch.cuda.set_device(device)
        return NcclCommunicator(info, device), device

    return meet


def wait_for(group: Communicator, device: torch.device) -> None:
    """Wait for the device as the runtime does, under the group's time limit."""
    if device.type == "cuda":
        from drivetrain_cuda.faults import CUDA_FAULTS
        from drivetrain_triton.device.communicator import NcclCommunicator
        from drivetrain_triton.device.runtime import StreamRuntime

        assert isinstance(group, NcclCommunicator)
        StreamRuntime(device, CUDA_FAULTS, watch=group).synchronize()


def main() -> None:
    kind, scenario, rank, port, timeout_s = *sys.argv[1:3], int(sys.argv[3]), sys.argv[4], float(sys.argv[5])
    meet = meeting(kind)
    print("ready", flush=True)
    sys.stdin.readline()  # until all are: a rank that is slow to start is none that is lost
    begin = time.monotonic()
    try:
        info = RankInfo(rank=rank, world=2, init_method=f"tcp://127.0.0.1:{port}", timeout_s=timeout_s)
        group, device = meet(info)
        begin = time.monotonic() if kind == "nccl" else begin  # connecting GPUs takes seconds of its own
        if scenario == "every":
            every_collective(group, device)
        elif scenario == "recorded":
            recorded_collectives(group, device)
        elif scenario == "dies" and rank == 1:
            return
        elif scenario == "hangs" and rank == 1:
            time.sleep(timeout_s + 2)
            return
        else:
            group.all_reduce(torch.ones(4, device=device))
            wait_for(group, device)
        group.close()
    except CommunicatorError as error:
        print(f"CommunicatorError after {time.monotonic() - begin:.1f} s: {error}", flush=True)
        if kind == "nccl":
            os._exit(0)  # as an engine ends: nothing waits for a group whose ranks are gone
    else:
        print("done")


if __name__ == "__main__":
    main()
