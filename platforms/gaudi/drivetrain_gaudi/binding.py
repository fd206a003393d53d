"""Which card a rank takes. Habana binds by environment, read when its libraries are loaded."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING

from drivetrain_plugins.errors import BackendError

if TYPE_CHECKING:  # the probe needs this module, and no torch
    from drivetrain_plugins.contract.backend import RankInfo

VISIBLE = "HABANA_VISIBLE_MODULES"
MODULE = "HLS_MODULE_ID"
MODULES_OF_A_HOST = 8


def visible_modules(environment: Mapping[str, str]) -> tuple[int, ...]:
    """Module ids that this process may use; all eight of a host if nothing restricts them.

    Raises:
        BackendError: HABANA_VISIBLE_MODULES does not hold distinct numbers.
    """
    text = environment.get(VISIBLE, "").strip()
    if not text:
        return tuple(range(MODULES_OF_A_HOST))
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() for word in words) or len(set(words)) != len(words):
        raise BackendError(f"{VISIBLE}: got {text!r}, expected distinct module ids such as 0,1,2; correct or unset it")
    return tuple(map(int, words))


def bind(rank: RankInfo, environment: MutableMapping[str, str]) -> None:
    """Set HLS_MODULE_ID for this rank, unless the user did. One rank without a restriction takes any free card.

    Raises:
        BackendError: there is no card for this rank, or the user's choice lies outside of what is visible.
    """
    modules = visible_modules(environment)
    chosen = environment.get(MODULE, "")
    if chosen:
        if rank.world > 1:
            raise BackendError(f"{MODULE}={chosen} binds one card, but {rank.world} ranks are started here; unset it")
        if not chosen.isdecimal() or int(chosen) not in modules:
            raise BackendError(
                f"{MODULE}: got {chosen!r}, expected one of the visible modules {', '.join(map(str, modules))}; "
                "correct or unset it"
            )
        return
    if rank.local_rank >= len(modules):
        raise BackendError(
            f"rank {rank.rank} wants card {rank.local_rank} of this host, but {len(modules)} are visible "
            f"({', '.join(map(str, modules))}); lower the parallelism or widen {VISIBLE}"
        )
    if rank.world > 1 or environment.get(VISIBLE, "").strip():
        environment[MODULE] = str(modules[rank.local_rank])
