"""Registers the name `hccl` with torch.distributed; gloo carries the messages here."""

from __future__ import annotations

import torch.distributed as dist


def _create(backend_opts, pg_opts):
    return dist.ProcessGroupGloo(
        backend_opts.store, backend_opts.group_rank, backend_opts.group_size, timeout=backend_opts.timeout
    )


dist.Backend.register_backend("hccl", _create, extended_api=True, devices=["cpu"])
