"""Weights from host memory to the device at the speed of the link.

A copy out of pageable memory goes through one small pinned buffer of the driver's and one thread. Here torch's threads
fill pinned blocks (and convert the type on the way) while the device fetches the blocks filled before.
"""

# Relaxed: torch's stubs leave events half typed.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

from __future__ import annotations

import torch

BLOCK_BYTES = 16 << 20
NUM_BLOCKS = 4


class Uploader:
    """Pinned blocks in a ring."""

    def __init__(self) -> None:
        self._blocks = [torch.empty(BLOCK_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(NUM_BLOCKS)]
        self._copied = [torch.cuda.Event(blocking=True) for _ in range(NUM_BLOCKS)]
        self._next = 0

    @torch.inference_mode()
    def __call__(self, host: torch.Tensor, destination: torch.Tensor) -> None:
        """Copy `host` into `destination`, of the same shape; returns when `host` is not needed any more."""
        if host.shape != destination.shape:
            raise ValueError(f"upload: got a tensor of {list(host.shape)} for one of {list(destination.shape)}")
        if host.device.type != "cpu" or host.is_pinned():
            destination.copy_(host)
            return
        for host_part, part in pieces(host, destination, BLOCK_BYTES):
            if host_part.numel() * part.element_size() > BLOCK_BYTES:
                part.copy_(host_part)
                continue
            index = self._next
            self._next = (index + 1) % NUM_BLOCKS
            self._copied[index].synchronize()
            block = self._blocks[index][: part.numel() * part.element_size()]
            pinned = block.view(part.dtype).view(part.shape)
            pinned.copy_(host_part)
            part.copy_(pinned, non_blocking=True)
            self._copied[index].record()


def pieces(host: torch.Tensor, destination: torch.Tensor, block_bytes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Both tensors cut alike, into parts of at most `block_bytes` in the destination or, if a row is more, rows."""
    if not destination.numel():
        return []
    if host.is_contiguous() and destination.is_contiguous():
        host, destination = host.view(-1), destination.view(-1)
    row_bytes = destination[0].numel() * destination.element_size()
    step = max(1, block_bytes // row_bytes)
    return list(zip(host.split(step), destination.split(step), strict=True))
