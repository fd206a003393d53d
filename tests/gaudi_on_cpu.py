"""The Gaudi backend on the processor: all of its own code, over a stub of Habana's packages that forgives nothing."""

from __future__ import annotations

import sys
from pathlib import Path

from drivetrain_gaudi.backend import GaudiBackend
from drivetrain_gaudi.habana import Habana, load_habana

STUB = Path(__file__).parent / "habana_stub"


def install_stub() -> None:
    """Make the stub of `habana_frameworks` importable in this process."""
    if str(STUB) not in sys.path:
        sys.path.insert(0, str(STUB))


class GaudiOnCpu(GaudiBackend):
    """Tensors lie in host memory; everything else is as on a card."""

    def load(self) -> Habana:
        install_stub()
        return load_habana("cpu")


class GaudiOnCpuUnfused(GaudiBackend):
    """The same with a version of Habana's packages that has neither `FusedSDPA` nor `FusedRMSNorm`."""

    def load(self) -> Habana:
        install_stub()
        from dataclasses import replace

        return replace(load_habana("cpu"), fused_sdpa=None, fused_rms_norm=None)
