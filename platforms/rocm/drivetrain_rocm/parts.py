"""The AMD parts that are served, as data, and their names as drivers and compilers spell them.

A part is known by its architecture string. AMD's numbers are no measure of age or ability: gfx942 calls itself (9, 4),
and what holds for NVIDIA's capability (9, 0) says nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from drivetrain_plugins.contract.capabilities import Fp8Flavour

Matrix = Literal["mfma", "wmma"]

RDNA_HEAD_DIM = 128
"""A wave of 32 has 256 registers a thread: 16 queries of a head of 256 and their sums fill them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An architecture that kernels are compiled and configured for.

    Attributes:
        name: "gfx942" and so on. products: for people.
        wave_size: threads that run in step.
        lds_bytes: most shared memory of one program.
        matrix: the family of its matrix instructions.
        fp8: which encoding its conversions and matrix instructions take; "none" leaves e4m3 to integer arithmetic.
        max_head_dim: largest head that its registers hold without spilling.
    """

    name: str
    products: str
    wave_size: int
    lds_bytes: int
    matrix: Matrix
    fp8: Fp8Flavour
    max_head_dim: int = 256


PARTS: Mapping[str, Part] = {
    part.name: part
    for part in (
        Part(
            name="gfx90a",
            products="Instinct MI210, MI250, MI250X",
            wave_size=64,
            lds_bytes=64 << 10,
            matrix="mfma",
            fp8="none",
        ),
        Part(
            name="gfx942",
            products="Instinct MI300A, MI300X, MI325X",
            wave_size=64,
            lds_bytes=64 << 10,
            matrix="mfma",
            fp8="fnuz",
        ),
        Part(
            name="gfx950",
            products="Instinct MI350X, MI355X",
            wave_size=64,
            lds_bytes=160 << 10,
            matrix="mfma",
            fp8="ocp",
        ),
        Part(
            name="gfx1100",
            products="Radeon RX 7900, PRO W7900, W7800",
            wave_size=32,
            lds_bytes=64 << 10,
            matrix="wmma",
            fp8="none",
            max_head_dim=RDNA_HEAD_DIM,
        ),
        Part(
            name="gfx1201",
            products="Radeon RX 9070, AI PRO R9700",
            wave_size=32,
            lds_bytes=64 << 10,
            matrix="wmma",
            fp8="ocp",
            max_head_dim=RDNA_HEAD_DIM,
        ),
    )
}

SIBLINGS: Mapping[str, str] = {"gfx1101": "gfx1100", "gfx1102": "gfx1100", "gfx1200": "gfx1201"}
"""Parts with the instructions, registers and shared memory of another, whose entries they take."""

_ARCH = re.compile(r"gfx[0-9]+[0-9a-f]{2}")


def arch_of(spelled: str) -> str:
    """The architecture in a name such as "gfx942:sramecc+:xnack-" or "amdgcn-amd-amdhsa--gfx90a:xnack-".

    Raises:
        ValueError: there is none.
    """
    name = spelled.rsplit("--", 1)[-1].split(":", 1)[0].strip().lower()
    if not _ARCH.fullmatch(name):
        raise ValueError(
            f"{spelled!r} names no AMD architecture; expected one such as gfx942 or gfx942:sramecc+:xnack-"
        )
    return name


def arch_of_target_version(number: int) -> str:
    """The architecture of a number in the kernel driver's topology: 90402 is gfx942, 110000 is gfx1100, 90010 gfx90a.

    Raises:
        ValueError: it is no architecture, as the 0 of a processor's node.
    """
    major, minor, step = number // 10000, number // 100 % 100, number % 100
    if major <= 0 or minor > 15 or step > 15:
        raise ValueError(f"gfx_target_version {number} is no GPU's; expected one such as 90402")
    return f"gfx{major}{minor:x}{step:x}"


def part_of(arch: str) -> Part | None:
    """What is known of an architecture, or None if it is not served."""
    return PARTS.get(SIBLINGS.get(arch, arch))


def served_parts() -> str:
    """The names of all architectures that are served, for messages."""
    return ", ".join(sorted((*PARTS, *SIBLINGS), key=lambda name: (len(name), name)))
