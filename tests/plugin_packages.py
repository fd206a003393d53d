"""Write small installed distributions into a folder, as pip would leave them, for tests of discovery."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path

READY_PROBE = """
from drivetrain_plugins.spec import DeviceInfo, ProbeResult

def probe():
    device = DeviceInfo(index=0, name="Acme X1", architecture="x1", memory_bytes=1024, free_memory_bytes=512)
    return ProbeResult(ready=True, devices=(device,), details={"driver": "7.1"})
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginPackages:
    """A folder on `sys.path` that distributions are written into."""

    folder: Path

    def install(
        self,
        distribution: str,
        plugin: str | None = None,
        probe: str = READY_PROBE,
        *,
        version: str = "1.2",
        entry_points: str | None = None,
    ) -> str:
        """Write one distribution with the modules NAME_plugin and NAME_probe and give NAME, its import name.

        Args:
            distribution: its name, which is the entry point's and by default the backend's too.
            plugin: source of the entry point's module; a sound one if None.
            probe: source of the probe's module.
            version: version in its metadata.
            entry_points: the whole entry_points.txt; one entry point for the plugin module if None.
        """
        name = distribution.replace("-", "_")
        metadata = self.folder / f"{name}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        listed = entry_points or f"[drivetrain.backends]\n{distribution} = {name}_plugin\n"
        (metadata / "entry_points.txt").write_text(listed)
        source = plugin if plugin is not None else plugin_source(distribution)
        (self.folder / f"{name}_plugin.py").write_text(textwrap.dedent(source))
        (self.folder / f"{name}_probe.py").write_text(textwrap.dedent(probe))
        return name


def plugin_source(name: str, *, priority: int = 50, contract: tuple[int, int] = (1, 1), probe: str = "") -> str:
    """Source of a sound plugin module that lists the backend `name`."""
    module = name.replace("-", "_")
    return f"""
from drivetrain_plugins.hooks import hookimpl
from drivetrain_plugins.spec import BackendSpec

@hookimpl
def drivetrain_backends():
    return [
        BackendSpec(
            name={name!r}, contract={contract!r}, priority={priority}, probe={probe or module + "_probe:probe"!r},
            backend="{module}_backend:Backend", description="a made-up device",
        )
    ]
"""
