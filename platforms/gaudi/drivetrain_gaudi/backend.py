"""The Gaudi backend: opens one card for a rank."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import msgspec

from drivetrain_gaudi.binding import bind
from drivetrain_gaudi.device import GaudiDevice
from drivetrain_gaudi.habana import Habana, load_habana
from drivetrain_gaudi.options import GaudiOptions
from drivetrain_gaudi.recipe_cache import VARIABLE, content_key, recipe_cache_setting
from drivetrain_plugins.contract.backend import Backend, RankInfo
from drivetrain_plugins.errors import BackendError


class GaudiBackend(Backend):
    """Serves on Intel Gaudi."""

    name = "gaudi"

    def open(self, rank: RankInfo, options: Mapping[str, Any]) -> GaudiDevice:
        try:
            settings = msgspec.convert(dict(options), GaudiOptions)
        except msgspec.ValidationError as error:
            known = ", ".join(GaudiOptions.__struct_fields__)
            raise BackendError(f"backend_options.gaudi: {error}; the keys are {known}") from error
        if os.environ.get("PT_HPU_LAZY_MODE", "0") != "0":
            raise BackendError(
                f"PT_HPU_LAZY_MODE is {os.environ['PT_HPU_LAZY_MODE']!r}: lazy mode cannot compile recorded steps; "
                "unset it or set it to 0"
            )
        # All of it is read when Habana's libraries are loaded.
        bind(rank, os.environ)
        recipes = recipe_cache_setting(settings, os.environ, rank=rank.rank, content=content_key())
        if recipes is not None:
            os.environ[VARIABLE] = recipes
        return GaudiDevice(rank, settings, self.load())

    def load(self) -> Habana:
        """Habana's software on this machine."""
        return load_habana()
