"""The one pluggy hook. It is called at start-up, in a process that lists plugins; nothing per token goes through it.

A backend package declares an entry point in the group `drivetrain.backends` whose module holds

    @hookimpl
    def drivetrain_backends() -> list[BackendSpec]: ...

and imports nothing heavy: the spec names the probe and the backend by import strings.
"""

from __future__ import annotations

import pluggy

from drivetrain_plugins.spec import BackendSpec

PROJECT = "drivetrain"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class BackendHooks:
    """The hooks that a plugin may implement."""

    @hookspec
    def drivetrain_backends(self) -> list[BackendSpec]:  # pyright: ignore[reportReturnType]  # a declaration
        """List the backends of this package, whether or not they can run here; their probes say that."""
