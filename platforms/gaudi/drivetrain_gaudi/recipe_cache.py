"""Where compiled recipes outlive the process.

Habana's bridge finds a recipe in the folder by a hash of its graph. The folder itself is named by what else decides
what a recipe holds: the versions of the software and the code that makes the graphs. So a recipe that another version
compiled is never looked at, and an update needs no cleaning up.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from drivetrain_gaudi.options import GaudiOptions
from drivetrain_plugins.host import installed_version

VARIABLE = "PT_HPU_RECIPE_CACHE_CONFIG"
DISTRIBUTIONS = ("torch", "habana-torch-plugin")


def recipe_cache_setting(
    options: GaudiOptions, environment: Mapping[str, str], *, rank: int, content: str
) -> str | None:
    """The value of PT_HPU_RECIPE_CACHE_CONFIG, "folder,delete,megabytes", or None to leave it alone.

    Args:
        rank: ranks compile other graphs, and write at the same time; each has a folder.
        content: what `content_key` gives.
    """
    if options.recipe_cache == "off" or environment.get(VARIABLE):
        return None
    root = Path(options.recipe_cache) if options.recipe_cache else _user_cache(environment) / "drivetrain" / "gaudi"
    return f"{root / content / f'rank{rank}'},False,{options.recipe_cache_mb}"


def content_key(versions: Iterable[str] | None = None, folder: Path | None = None) -> str:
    """A name for the software that makes and compiles the graphs."""
    digest = hashlib.sha256()
    for version in _versions() if versions is None else versions:
        digest.update(f"{version}\n".encode())
    for file in sorted((folder or Path(__file__).parent).glob("*.py")):
        digest.update(f"{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def _versions() -> list[str]:
    return [f"{name} {installed_version(name) or 'unknown'}" for name in DISTRIBUTIONS]


def _user_cache(environment: Mapping[str, str]) -> Path:
    named = environment.get("XDG_CACHE_HOME")
    return Path(named) if named else Path(os.path.expanduser("~")) / ".cache"
