"""Whether this machine can serve on Gaudi, and if not what stands in the way. Opens no card and imports no torch.

What is asked, in this order: signs of a card, what hides it, Habana's PyTorch bridge, the management library. `root` is
the folder that /dev and /sys are read under.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from drivetrain_gaudi.binding import VISIBLE, visible_modules
from drivetrain_gaudi.telemetry import Card, Host, TelemetryUnavailable, read_host
from drivetrain_plugins.errors import BackendError
from drivetrain_plugins.host import ROOT, installed_version, pci_devices
from drivetrain_plugins.spec import DeviceInfo, ProbeResult

HABANA_VENDOR = "0x1da3"
SIGNS = ("dev/accel/accel_controlD0", "dev/hl_controlD0", "dev/hl0")
"""Paths that exist only where Habana's kernel driver is loaded and this process may see a card."""
PROVEN = "contract-tested, never run on Gaudi"
INSTALL = "install Intel's Gaudi software for PyTorch, or start from its container image (vault.habana.ai)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """The packages that the backend needs, as found without importing them.

    Attributes:
        torch: version or None.
        bridge: whether `habana_frameworks.torch` is there.
        namesakes: distributions that provide the name `habana_frameworks` without the bridge.
        bridge_version: of the distribution habana-torch-plugin, or None.
    """

    torch: str | None
    bridge: bool
    namesakes: tuple[str, ...]
    bridge_version: str | None


def probe() -> ProbeResult:
    """Say whether the Gaudi backend can serve here."""
    return examine(installed(), os.environ, read_host)


def examine(
    packages: Installed, environment: Mapping[str, str], ask: Callable[[], Host], *, root: Path = ROOT
) -> ProbeResult:
    """The probe on a given machine.

    Args:
        ask: asks the management library; raises `TelemetryUnavailable`.
    """
    sign = next((sign for sign in SIGNS if (root / sign).exists()), None)
    if sign is None:
        return _no_driver(root)
    details: dict[str, str | int | float | bool | tuple[str, ...]] = {"proof": PROVEN}
    if packages.torch is not None:
        details["torch"] = packages.torch
    if packages.bridge_version is not None:
        details["habana_torch_plugin"] = packages.bridge_version
    obstacle = _packages(packages)
    if obstacle is not None:
        reason, next_step = obstacle
        return ProbeResult(ready=False, reason=reason, next_step=next_step, details=details, idle_hardware=True)
    try:
        modules = visible_modules(environment)
        host = ask()
    except BackendError as error:
        return ProbeResult(ready=False, reason=str(error), next_step=f"correct {VISIBLE}", details=details)
    except TelemetryUnavailable as error:
        return ProbeResult(
            ready=False,
            reason=f"a Gaudi card is here (/{sign}), but it cannot be asked: {error}",
            next_step="install pyhlml and the library /usr/lib/habanalabs/libhlml.so that belong to the driver; in a "
            "container, start it with --runtime=habana",
            details=details,
            idle_hardware=True,
        )
    details["driver"] = host.driver
    cards = [card for card in host.cards if card.module_id is None or card.module_id in modules]
    if not cards:
        hidden = f"{VISIBLE}={environment[VISIBLE]!r} leaves no card visible" if host.cards else "hlml lists no card"
        return ProbeResult(
            ready=False,
            reason=hidden,
            next_step=f"name the modules to serve on in {VISIBLE}, or unset it" if host.cards else "see `hl-smi`",
            details=details,
            idle_hardware=not host.cards,
        )
    devices = tuple(_device(index, card) for index, card in enumerate(cards))
    return ProbeResult(ready=True, devices=devices, details=details)


def installed() -> Installed:
    """What is installed in this environment, told without importing it."""
    spec = importlib.util.find_spec("habana_frameworks")
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    bridge = any((Path(folder) / "torch" / "__init__.py").is_file() for folder in folders)
    named = importlib.metadata.packages_distributions().get("habana_frameworks", []) if folders else []
    return Installed(
        torch=installed_version("torch"),
        bridge=bridge,
        namesakes=() if bridge else tuple(sorted(set(named))) or (("an unnamed package",) if folders else ()),
        bridge_version=installed_version("habana-torch-plugin"),
    )


def _packages(packages: Installed) -> tuple[str, str] | None:
    """(reason, next step) of what is not installed."""
    if packages.torch is None:
        return "PyTorch is not installed", INSTALL
    if packages.bridge:
        return None
    if packages.namesakes:
        return (
            f"habana_frameworks is here ({', '.join(packages.namesakes)}), but not its part habana_frameworks.torch: a "
            "data loader brings the same name",
            INSTALL,
        )
    return "Habana's PyTorch bridge (habana_frameworks.torch) is not installed", INSTALL


def _no_driver(root: Path) -> ProbeResult:
    if _on_the_bus(root):
        return ProbeResult(
            ready=False,
            reason="there is a Gaudi card in this machine, but its driver is not loaded or its device files are hidden",
            next_step="load the habanalabs driver, or start the container with --runtime=habana",
            idle_hardware=True,
        )
    looked_for = ", ".join(f"/{sign}" for sign in SIGNS)
    return ProbeResult(ready=False, reason=f"no Gaudi driver is loaded (looked for {looked_for})")


def _on_the_bus(root: Path) -> bool:
    return any(True for _ in pci_devices(root, HABANA_VENDOR))


def _device(index: int, card: Card) -> DeviceInfo:
    told = {
        "uuid": card.uuid,
        "module": card.module_id,
        "utilization_percent": card.utilization,
        "temperature_c": card.temperature,
        "power_mw": card.power_mw,
    }
    return DeviceInfo(
        index=index,
        name=f"{card.name} ({PROVEN})",
        architecture=card.name.split()[0].lower() if card.name.split() else "gaudi",
        memory_bytes=card.memory_bytes,
        free_memory_bytes=max(0, card.memory_bytes - card.used_bytes),
        details={name: value for name, value in told.items() if value is not None},
    )
