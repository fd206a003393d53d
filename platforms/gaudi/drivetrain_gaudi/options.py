"""The `[backend_options.gaudi]` table."""

from __future__ import annotations

from typing import Literal

import msgspec


class GaudiOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user may set for the Gaudi backend. Everything else follows from the card and the limits.

    Attributes:
        warm_up_s: seconds that compiling and running every shape may take before serving begins; what is left is
            prepared while nobody waits.
        new_shapes: what happens to a step whose shape nobody prepared: "warn" runs it and counts, "refuse" is an error.
        recipe_cache: folder of compiled recipes; empty is `drivetrain/gaudi` in the user's cache folder, "off" is none.
        recipe_cache_mb: megabytes that the folder may take.
    """

    warm_up_s: float = 1800.0
    new_shapes: Literal["warn", "refuse"] = "warn"
    recipe_cache: str = ""
    recipe_cache_mb: int = 16384

    def __post_init__(self) -> None:
        if not self.warm_up_s > 0:
            raise ValueError(f"warm_up_s: got {self.warm_up_s}, expected more than 0")
        if self.recipe_cache_mb < 1:
            raise ValueError(f"recipe_cache_mb: got {self.recipe_cache_mb}, expected at least 1")
        if "," in self.recipe_cache:
            raise ValueError(f"recipe_cache: got {self.recipe_cache!r}, expected a path without a comma")
