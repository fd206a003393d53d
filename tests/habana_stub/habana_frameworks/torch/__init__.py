"""The bridge: importing it registers ops and the compile backend, as Habana's does."""

from habana_frameworks.torch import compile_backend, ops  # noqa: F401
