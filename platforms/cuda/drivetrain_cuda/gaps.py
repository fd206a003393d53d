"""What grids and tables of the kernels cannot serve, said before work begins."""

from __future__ import annotations

from drivetrain_cuda.tables.decode import decode_config
from drivetrain_cuda.tables.prefill import prefill_config
from drivetrain_plugins.contract.executor import ExecutorLimits

MOST_ROWS, MOST_INVARIANT_ROWS = 32_000, 4_000
"""Rows whose chunks fit the second dimension of a grid, 65,535 programs; batch-invariant attention cuts more chunks."""


def kernel_gaps(limits: ExecutorLimits, arch: str, *, batch_invariant: bool) -> list[str]:
    """Reasons why the kernels cannot run under these limits on this part; empty if they can.

    Args:
        arch: "sm_90" and so on.
    """
    gaps: list[str] = []
    most = MOST_INVARIANT_ROWS if batch_invariant else MOST_ROWS
    if limits.max_num_rows > most:
        gaps.append(f"{limits.max_num_rows} sequences at once are more than the {most} that attention serves; lower it")
    try:
        decode_config(arch, 128, 2, 2, 1)
        prefill_config(arch, 128, 2)
    except ValueError as error:
        gaps.append(str(error))
    return gaps
