"""What grids and tables of the kernels cannot serve, said before work begins."""

from __future__ import annotations

from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_rocm.tables.decode import decode_config
from drivetrain_rocm.tables.prefill import prefill_config

MOST_ROWS, MOST_INVARIANT_ROWS = 32_000, 4_000
"""Rows whose chunks fit the second dimension of a grid, 65,535 programs; batch-invariant attention cuts more chunks."""


def kernel_gaps(limits: ExecutorLimits, arch: str, head_dims: frozenset[int], *, batch_invariant: bool) -> list[str]:
    """Reasons why the kernels cannot run under these limits on this part; empty if they can.

    Args:
        arch: "gfx942" and so on. head_dims: head sizes of the model.
    """
    gaps: list[str] = []
    most = MOST_INVARIANT_ROWS if batch_invariant else MOST_ROWS
    if limits.max_num_rows > most:
        gaps.append(f"{limits.max_num_rows} sequences at once are more than the {most} that attention serves; lower it")
    query_bytes = 4 if limits.dtype == "float32" else 2
    kv_bytes = {"float32": 4, "fp8_e4m3": 1, "fp8_e5m2": 1}.get(limits.kv_dtype, 2)
    for head_dim in sorted(head_dims):
        try:
            decode_config(arch, head_dim, kv_bytes, query_bytes, 1)
            prefill_config(arch, head_dim, query_bytes)
        except ValueError as error:
            gaps.append(str(error))
    return gaps
