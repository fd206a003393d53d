"""The `[backend_options.relic]` table."""

from __future__ import annotations

import msgspec


class RelicOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user may set. What can be measured should not be here.

    Attributes:
        kv_bytes: memory for pages where the configuration names none.
    """

    kv_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if self.kv_bytes < 1:
            raise ValueError(f"kv_bytes: got {self.kv_bytes}, expected a positive number of bytes")
