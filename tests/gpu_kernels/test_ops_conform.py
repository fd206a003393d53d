"""The conformance suite's checks of ops that the shared kernels serve; shortened in the interpreter."""

from __future__ import annotations

import zlib

import pytest
import torch

from drivetrain_plugins.conformance import op_checks, sampling_checks
from drivetrain_plugins.conformance.check import Check, checks_of
from drivetrain_triton.arch import GpuArch
from drivetrain_triton.ops import TritonOps
from gpu_kernels.ops_subject import OpsSubject

SERVED = ("embed", "norm", "activation", "logits", "token_logprobs")
CHECKS = [
    *checks_of(sampling_checks),
    *(found for found in checks_of(op_checks) if found.name.removeprefix("op.").startswith(SERVED)),
]


@pytest.mark.parametrize("case", CHECKS, ids=str)
def test_check(case: Check, arch: GpuArch, device: torch.device, interpreted: bool, monkeypatch: pytest.MonkeyPatch):
    if interpreted:
        monkeypatch.setattr(sampling_checks, "_TURNS", 2)
        if "prepare" not in case.name:  # which names its slots
            monkeypatch.setattr(sampling_checks, "_SLOTS", 5)
        monkeypatch.setattr(op_checks, "_TOKENS", (1, 3))
    dtypes = ("float32", "bfloat16") if interpreted else ("float32", "bfloat16", "float16")
    seed = zlib.crc32(str(case).encode())
    case.run(OpsSubject(TritonOps(arch), device, seed=seed, dtypes=dtypes))


def test_every_part_is_checked():
    assert len(CHECKS) == len(checks_of(sampling_checks)) + len(SERVED)
