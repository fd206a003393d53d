"""The `[backend_options.cpu]` table."""

from __future__ import annotations

import msgspec


class CpuOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user may set for the CPU backend. Everything else is measured.

    Attributes:
        threads: threads a step computes on; 0 takes every core that this process may use.
        kv_share: share of the free memory that pages may take where nobody says how many bytes.
    """

    threads: int = 0
    kv_share: float = 0.5

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise ValueError(f"threads: got {self.threads}, expected 0 (every usable core) or more")
        if not 0.0 < self.kv_share <= 1.0:
            raise ValueError(f"kv_share: got {self.kv_share}, expected more than 0 and at most 1")
