"""What `drivetrain backends` says of Gaudi on machines that are made up, and how ranks find their cards."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from drivetrain_gaudi.backend import GaudiBackend
from drivetrain_gaudi.binding import MODULE, VISIBLE, bind, visible_modules
from drivetrain_gaudi.generation import GENERATIONS, generation_of
from drivetrain_gaudi.options import GaudiOptions
from drivetrain_gaudi.probe import Installed, examine, installed
from drivetrain_gaudi.recipe_cache import VARIABLE, content_key, recipe_cache_setting
from drivetrain_gaudi.telemetry import Card, Host, TelemetryUnavailable
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.errors import BackendError
from fakes.fresh_python import printed_by

WHOLE = Installed(torch="2.13.0", bridge=True, namesakes=(), bridge_version="1.24.0")


def card(index: int, module: int | None = None) -> Card:
    return Card(
        index=index,
        name="HL-225",
        uuid=f"uuid-{index}",
        memory_bytes=96 << 30,
        used_bytes=1 << 30,
        module_id=index if module is None else module,
        utilization=3,
        temperature=40,
        power_mw=None,
    )


def two_cards() -> Host:
    return Host(driver="1.19.0", cards=(card(0), card(1)))


def machine(tmp_path: Path, *signs: str, vendor: str = "") -> Path:
    for sign in signs:
        (tmp_path / sign).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / sign).touch()
    if vendor:
        device = tmp_path / "sys/bus/pci/devices/0000:33:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
    return tmp_path


def forget_the_stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests may have loaded the stub of Habana's packages in this process."""
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if "habana_stub" not in folder])
    for name in [name for name in sys.modules if name.split(".")[0] == "habana_frameworks"]:
        monkeypatch.delitem(sys.modules, name)


def refuse() -> Host:
    raise TelemetryUnavailable("hlml does not start: Lib not initialized")


def test_no_card_is_no_obstacle_to_others(tmp_path: Path) -> None:
    found = examine(WHOLE, {}, two_cards, root=machine(tmp_path, vendor="0x10de"))
    assert not found.ready
    assert not found.idle_hardware
    assert found.reason.startswith("no Gaudi driver is loaded (looked for /dev/accel/accel_controlD0")


def test_a_card_without_its_driver(tmp_path: Path) -> None:
    found = examine(WHOLE, {}, two_cards, root=machine(tmp_path, vendor="0x1da3"))
    assert found.idle_hardware
    assert "there is a Gaudi card in this machine" in found.reason
    assert "--runtime=habana" in found.next_step


@pytest.mark.parametrize(
    ("packages", "reason"),
    [
        (Installed(torch=None, bridge=False, namesakes=(), bridge_version=None), "PyTorch is not installed"),
        (
            Installed(torch="2.13.0", bridge=False, namesakes=(), bridge_version=None),
            "Habana's PyTorch bridge (habana_frameworks.torch) is not installed",
        ),
        (
            Installed(torch="2.13.0", bridge=False, namesakes=("habana-media-loader",), bridge_version=None),
            "habana_frameworks is here (habana-media-loader), but not its part habana_frameworks.torch: a data loader "
            "brings the same name",
        ),
    ],
)
def test_what_is_not_installed_is_named(tmp_path: Path, packages: Installed, reason: str) -> None:
    found = examine(packages, {}, two_cards, root=machine(tmp_path, "dev/hl0"))
    assert (found.reason, found.idle_hardware) == (reason, True)
    assert "vault.habana.ai" in found.next_step


def test_cards_that_cannot_be_asked(tmp_path: Path) -> None:
    found = examine(WHOLE, {}, refuse, root=machine(tmp_path, "dev/accel/accel_controlD0"))
    assert found.idle_hardware
    assert found.reason == (
        "a Gaudi card is here (/dev/accel/accel_controlD0), but it cannot be asked: hlml does not start: Lib not "
        "initialized"
    )


def test_a_ready_machine_lists_its_cards_and_what_is_not_proven(tmp_path: Path) -> None:
    found = examine(WHOLE, {}, two_cards, root=machine(tmp_path, "dev/hl0"))
    assert found.ready
    assert found.details["proof"] == "contract-tested, never run on Gaudi"
    assert [device.index for device in found.devices] == [0, 1]
    assert found.devices[0].name == "HL-225 (contract-tested, never run on Gaudi)"
    assert found.devices[1].free_memory_bytes == 95 << 30
    assert found.devices[1].details == {
        "uuid": "uuid-1",
        "module": 1,
        "utilization_percent": 3,
        "temperature_c": 40,
    }


def test_hidden_cards_are_left_out_and_do_not_stand_idle(tmp_path: Path) -> None:
    root = machine(tmp_path, "dev/hl0")
    found = examine(WHOLE, {VISIBLE: "1"}, two_cards, root=root)
    assert [device.details["uuid"] for device in found.devices] == ["uuid-1"]
    found = examine(WHOLE, {VISIBLE: "5"}, two_cards, root=root)
    assert (found.ready, found.idle_hardware) == (False, False)
    assert "HABANA_VISIBLE_MODULES='5' leaves no card visible" in found.reason
    found = examine(WHOLE, {VISIBLE: "none"}, two_cards, root=root)
    assert "expected distinct module ids" in found.reason


def test_the_bridge_is_looked_for_without_importing_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = tmp_path / "habana_frameworks" / "mediapipe"
    loader.mkdir(parents=True)
    (tmp_path / "habana_frameworks" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    forget_the_stub(monkeypatch)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = installed()
    assert not found.bridge
    assert found.namesakes == ("an unnamed package",)
    bridge = tmp_path / "habana_frameworks" / "torch"
    bridge.mkdir()
    (bridge / "__init__.py").write_text("raise RuntimeError('imported')\n")
    assert installed().bridge
    assert "habana_frameworks" not in sys.modules


def test_listing_and_probing_import_no_torch() -> None:
    program = (
        "import sys; import drivetrain_gaudi.plugin as plugin; plugin.drivetrain_backends(); "
        "from drivetrain_gaudi.probe import probe; probe(); "
        "print(sorted({'torch', 'habana_frameworks'} & set(sys.modules)))"
    )
    assert printed_by(program) == "[]\n"


def test_ranks_take_the_visible_modules_in_order() -> None:
    environment = {VISIBLE: "2, 5,7"}
    bind(RankInfo(rank=1, world=3, local_rank=1), environment)
    assert environment[MODULE] == "5"
    assert visible_modules({}) == tuple(range(8))
    alone: dict[str, str] = {}
    bind(RankInfo(), alone)
    assert MODULE not in alone, "one rank takes any free card"
    restricted = {VISIBLE: "6"}
    bind(RankInfo(), restricted)
    assert restricted[MODULE] == "6"


@pytest.mark.parametrize(
    ("rank", "environment", "message"),
    [
        (
            RankInfo(rank=2, world=3, local_rank=2),
            {VISIBLE: "0,1"},
            "rank 2 wants card 2 of this host, but 2 are visible",
        ),
        (RankInfo(), {MODULE: "9"}, "HLS_MODULE_ID: got '9'"),
        (RankInfo(), {MODULE: "1", VISIBLE: "0"}, "expected one of the visible modules 0"),
        (RankInfo(rank=0, world=2), {MODULE: "0"}, "binds one card, but 2 ranks are started here"),
        (RankInfo(), {VISIBLE: "0,0"}, "expected distinct module ids"),
    ],
)
def test_what_cannot_be_bound_is_told(rank: RankInfo, environment: dict[str, str], message: str) -> None:
    with pytest.raises(BackendError, match=message):
        bind(rank, environment)


def test_generations_are_told_by_habana_s_own_names() -> None:
    members = {"synDeviceGaudi": 2, "synDeviceGaudi2": 4, "synDeviceGaudi3": 5}
    assert [generation_of(value, members).fp8_max for value in (2, 4, 5)] == [None, 240.0, 448.0]
    # A version from before Gaudi 3 has no member for it.
    assert generation_of(4, {"synDeviceGaudi": 2, "synDeviceGaudi2": 4}) is GENERATIONS[1]
    with pytest.raises(BackendError, match="a generation that Drivetrain does not know: got device type 9"):
        generation_of(9, members)


def test_recipes_are_kept_apart_by_what_compiles_them(tmp_path: Path) -> None:
    options = GaudiOptions(recipe_cache_mb=100)
    key = content_key(["torch 1", "habana-torch-plugin 2"])
    assert key == content_key(["torch 1", "habana-torch-plugin 2"])
    assert key != content_key(["torch 1", "habana-torch-plugin 3"])
    (tmp_path / "a.py").write_text("x = 1\n")
    before = content_key([], tmp_path)
    (tmp_path / "a.py").write_text("x = 2\n")
    assert content_key([], tmp_path) != before
    setting = recipe_cache_setting(options, {"XDG_CACHE_HOME": "/var/cache"}, rank=1, content=key)
    assert setting == f"/var/cache/drivetrain/gaudi/{key}/rank1,False,100"
    assert recipe_cache_setting(options, {VARIABLE: "/mine,False,5"}, rank=0, content=key) is None
    assert recipe_cache_setting(GaudiOptions(recipe_cache="off"), {}, rank=0, content=key) is None


@pytest.mark.parametrize("bad", [{"warm_up_s": 0}, {"recipe_cache": "/a,b"}, {"new_shapes": "ignore"}, {"threads": 1}])
def test_options_are_checked_before_anything_is_loaded(bad: dict[str, object]) -> None:
    with pytest.raises(BackendError, match=r"backend_options\.gaudi: .*the keys are warm_up_s, new_shapes"):
        GaudiBackend().open(RankInfo(), bad)


def test_lazy_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "1")
    with pytest.raises(BackendError, match="PT_HPU_LAZY_MODE is '1'"):
        GaudiBackend().open(RankInfo(), {})


def test_without_habana_s_packages_opening_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MODULE, raising=False)
    forget_the_stub(monkeypatch)
    with pytest.raises(BackendError, match="Habana's PyTorch bridge cannot be imported"):
        GaudiBackend().open(RankInfo(), {"recipe_cache": "off"})
