"""Discovery names every installed plugin that it cannot use, says why, and never loses the others."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from drivetrain_plugins.discovery import Discovery, blocked_by_environment, discover
from drivetrain_plugins.status import BackendState, Origin, Status
from fakes.waiting import LIMIT_S
from plugin_packages import PluginPackages, plugin_source

MARKED_HOOK = "from drivetrain_plugins.hooks import hookimpl\n@hookimpl\n"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PluginPackages:
    monkeypatch.syspath_prepend(tmp_path)
    return PluginPackages(folder=tmp_path)


def rejected(discovery: Discovery, name: str) -> BackendState:
    (state,) = [state for state in discovery.rejected if state.name == name]
    return state


def names(discovery: Discovery) -> list[str]:
    return [backend.spec.name for backend in discovery.found]


def test_a_sound_plugin_is_listed_with_its_origin_and_not_imported_here(packages: PluginPackages) -> None:
    packages.install("acme")
    discovery = discover()
    (acme,) = [backend for backend in discovery.found if backend.spec.name == "acme"]
    assert acme.origin == Origin(distribution="acme", version="1.2", entry_point="acme", target="acme_plugin")
    assert acme.spec.probe == "acme_probe:probe"
    assert acme.spec.contract == (1, 1)
    assert acme.spec.version == "1.2"
    assert "acme_plugin" not in sys.modules
    assert "acme_probe" not in sys.modules


@pytest.mark.parametrize(
    ("source", "reason", "next_step"),
    [
        pytest.param(
            "import acme_sdk_that_is_missing",
            "importing 'bad_plugin' raised ModuleNotFoundError: No module named 'acme_sdk_that_is_missing' "
            "({folder}/bad_plugin.py:1)",
            "repair or uninstall the package",
            id="import error",
        ),
        pytest.param(
            "x = 1\ndef broken(:\n",
            "importing 'bad_plugin' raised SyntaxError: invalid syntax ({folder}/bad_plugin.py:2)",
            "repair or uninstall the package",
            id="syntax error",
        ),
        pytest.param(
            "raise SystemExit(3)",
            "importing 'bad_plugin' raised SystemExit: 3 ({folder}/bad_plugin.py:1)",
            "repair or uninstall the package",
            id="exit at import",
        ),
        pytest.param(
            "import os; os.abort()",
            "the process that imported 'bad_plugin' was killed by SIGABRT",
            "a plugin module must only describe its backend; move slow or native work into the probe or the backend",
            id="crash at import",
        ),
        pytest.param(
            "import os; os._exit(7)",
            "the process that imported 'bad_plugin' exited with code 7 before it answered",
            "a plugin module must only describe its backend; move slow or native work into the probe or the backend",
            id="silent exit at import",
        ),
        pytest.param(
            MARKED_HOOK + "def drivetrain_backend(): return []",
            "'bad_plugin' implements 'drivetrain_backend', which is no hook of Drivetrain; "
            "did you mean 'drivetrain_backends'?",
            "rename drivetrain_backend to drivetrain_backends",
            id="misspelt hook",
        ),
        pytest.param(
            MARKED_HOOK + "def start(): return []",
            "'bad_plugin' implements 'start', which is no hook of Drivetrain",
            "rename start to drivetrain_backends",
            id="foreign hook",
        ),
        pytest.param(
            "def drivetrain_backends(): return []",
            "drivetrain_backends in 'bad_plugin' is not marked as a hook",
            "decorate it with @hookimpl from drivetrain_plugins.hooks",
            id="unmarked hook",
        ),
        pytest.param(
            "def drivetrain_backend(): return []",
            "'bad_plugin' has no hook drivetrain_backends; it has 'drivetrain_backend'",
            "rename drivetrain_backend to drivetrain_backends and decorate it with @hookimpl from "
            "drivetrain_plugins.hooks",
            id="misspelt and unmarked",
        ),
        pytest.param(
            "",
            "'bad_plugin' has no hook drivetrain_backends",
            "define drivetrain_backends() -> list[BackendSpec] there and decorate it with @hookimpl from "
            "drivetrain_plugins.hooks",
            id="no hook",
        ),
        pytest.param(
            MARKED_HOOK + "def drivetrain_backends(): return 'acme'",
            "drivetrain_backends() returned str, expected list[BackendSpec]",
            "return a list of BackendSpec",
            id="junk",
        ),
        pytest.param(
            MARKED_HOOK + "def drivetrain_backends(): return None",
            "drivetrain_backends() returned NoneType, expected list[BackendSpec]",
            "return a list of BackendSpec",
            id="nothing",
        ),
        pytest.param(
            MARKED_HOOK + "def drivetrain_backends(): return [{'name': 'bad'}]",
            "drivetrain_backends() returned a list whose item 0 is dict, expected list[BackendSpec]",
            "return a list of BackendSpec",
            id="junk in the list",
        ),
        pytest.param(
            MARKED_HOOK + "def drivetrain_backends(): return []",
            "drivetrain_backends() returned an empty list, expected list[BackendSpec] with at least one",
            "list the backend on every machine; its probe says whether it can run",
            id="empty list",
        ),
        pytest.param(
            MARKED_HOOK + "def drivetrain_backends(): raise RuntimeError('no licence')",
            "drivetrain_backends() raised RuntimeError: no licence ({folder}/bad_plugin.py:3)",
            "repair or uninstall the package",
            id="hook raises",
        ),
    ],
)
def test_a_broken_plugin_is_named_with_its_reason_and_hides_no_other(
    packages: PluginPackages, source: str, reason: str, next_step: str
) -> None:
    packages.install("bad", source)
    packages.install("acme")
    discovery = discover()
    bad = rejected(discovery, "bad")
    assert bad.status is Status.BROKEN
    assert bad.reason == reason.format(folder=packages.folder)
    assert bad.next_step == next_step
    assert str(bad.origin) == "bad 1.2"
    assert "acme" in names(discovery)


def test_what_a_crashed_plugin_printed_is_kept(packages: PluginPackages) -> None:
    packages.install("bad", "import os\nprint('libacme: no such device', flush=True)\nos.abort()")
    assert rejected(discover(), "bad").output[0] == "libacme: no such device"


def test_a_slow_import_is_cut_off_at_the_limit_and_the_others_are_not(packages: PluginPackages) -> None:
    packages.install("slow", "import time; time.sleep(600)")
    packages.install("acme")
    for limit_s in (0.6, 3.0, 15.0):  # until a sound plugin is imported within it on this machine
        started = time.monotonic()
        discovery = discover(time_limit_s=limit_s)
        assert time.monotonic() - started < limit_s + LIMIT_S
        told = rejected(discovery, "slow").reason
        assert told == f"the process that imported 'slow_plugin' did not answer within {limit_s:g} s"
        if "acme" in names(discovery):
            break
    assert "acme" in names(discovery)


def test_output_on_stdout_does_not_disturb_the_answer(packages: PluginPackages) -> None:
    packages.install("acme", "print('{\"specs\": []}')\n" + plugin_source("acme"))
    assert "acme" in names(discover())


@pytest.mark.parametrize(
    ("contract", "reason", "next_step"),
    [
        ((2, 3), "it speaks versions 2 to 3 of the backend contract; this Drivetrain speaks version 1", "drivetrain"),
        ((2, 2), "it speaks version 2 of the backend contract; this Drivetrain speaks version 1", "drivetrain"),
    ],
)
def test_a_plugin_for_another_contract_is_incompatible(
    packages: PluginPackages, contract: tuple[int, int], reason: str, next_step: str
) -> None:
    packages.install("acme", plugin_source("acme", contract=contract))
    state = rejected(discover(), "acme")
    assert state.status is Status.INCOMPATIBLE
    assert state.reason == reason
    assert state.next_step == f"upgrade {next_step}"


def test_a_plugin_for_an_older_contract_is_to_be_upgraded(
    packages: PluginPackages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drivetrain_plugins.discovery.CONTRACT_VERSION", 2)
    monkeypatch.setattr("drivetrain_plugins.discovery.OLDEST_CONTRACT_VERSION", 2)
    packages.install("acme")
    assert rejected(discover(), "acme").next_step == "upgrade acme"


def test_two_distributions_with_one_backend_name_are_both_refused_by_name(packages: PluginPackages) -> None:
    packages.install("acme-fork", plugin_source("acme", probe="acme_probe:probe"))
    packages.install("acme")
    discovery = discover()
    assert "acme" not in names(discovery)
    first, second = [state for state in discovery.rejected if state.name == "acme"]
    assert (str(first.origin), str(second.origin)) == ("acme 1.2", "acme-fork 1.2")
    assert first.reason == "the name 'acme' is also listed by acme-fork 1.2 (entry point 'acme-fork')"
    assert second.reason == "the name 'acme' is also listed by acme 1.2 (entry point 'acme')"
    assert second.next_step == ('uninstall one of them, or block one, for example blocked_backends = ["acme-fork"]')


def test_blocking_one_of_two_with_the_same_name_frees_the_other(packages: PluginPackages) -> None:
    packages.install("acme-fork", plugin_source("acme", probe="acme_probe:probe"))
    packages.install("acme")
    assert "acme" in names(discover(blocked={"acme-fork"}))


def test_no_other_package_takes_the_name_of_a_backend_of_the_tree(packages: PluginPackages) -> None:
    packages.install("drivetrain", plugin_source("cpu", priority=0), version="9.9")
    packages.install("impostor", plugin_source("cpu", priority=900))
    discovery = discover()
    (cpu,) = [backend for backend in discovery.found if backend.spec.name == "cpu"]
    assert cpu.origin.distribution == "drivetrain"
    assert rejected(discovery, "cpu").origin == Origin(
        distribution="impostor", version="1.2", entry_point="impostor", target="impostor_plugin"
    )


@pytest.mark.parametrize("blocked", ["acme-dist", "fast"])
def test_what_is_blocked_by_distribution_or_entry_point_is_not_even_imported(
    packages: PluginPackages, blocked: str
) -> None:
    witness = packages.folder / "imported"
    packages.install(
        "acme-dist",
        f"open({str(witness)!r}, 'w').close()\n" + plugin_source("acme"),
        entry_points="[drivetrain.backends]\nfast = acme_dist_plugin\n",
    )
    state = rejected(discover(blocked={blocked}), "fast")
    assert state.status is Status.BLOCKED
    assert state.reason == f"{blocked!r} is blocked by the configuration"
    assert state.next_step == (
        f"take {blocked!r} out of blocked_backends (configuration file or DRIVETRAIN_BLOCKED_BACKENDS)"
    )
    assert not witness.exists()


def test_a_backend_is_blocked_by_its_own_name(packages: PluginPackages) -> None:
    packages.install("acme-dist", plugin_source("acme"))
    discovery = discover(blocked={"acme"})
    assert rejected(discovery, "acme").status is Status.BLOCKED
    assert "acme" not in names(discovery)


def test_a_block_that_fits_nothing_is_reported_unless_the_backend_is_known(packages: PluginPackages) -> None:
    packages.install("acme")
    assert discover(blocked={"acmee", "gaudi"}).warnings == (
        "blocked_backends names 'acmee', but no backend, entry point or distribution of that name is installed; "
        "did you mean 'acme'?",
    )


def test_options_for_a_name_that_nothing_has_are_reported_with_the_nearest(packages: PluginPackages) -> None:
    packages.install("acme")
    packages.install("bad", "raise SystemExit(3)")
    installed = "no backend of that name is installed (installed are acme, cpu, cuda, gaudi, rocm)"
    assert discover(configured={"acme", "cpu", "rocm", "bad", "acmee", "nvidia", "toaster"}).warnings == (
        f"[backend_options.acmee] has no effect here: {installed}; did you mean 'acme'?",
        f"[backend_options.nvidia] has no effect here: {installed}; did you mean 'cuda'?",
        f"[backend_options.toaster] has no effect here: {installed}",
    )


def test_the_words_of_every_backend_in_the_tree_lead_to_it(packages: PluginPackages) -> None:
    discovery = discover(blocked={"nvidia", "amd", "intel", "habana"})
    assert [warning.partition("; ")[2] for warning in discovery.warnings] == [
        "did you mean 'rocm'?",
        "did you mean 'gaudi'?",
        "did you mean 'gaudi'?",
        "did you mean 'cuda'?",
    ]


def test_blocks_come_from_the_environment() -> None:
    assert blocked_by_environment({"DRIVETRAIN_BLOCKED_BACKENDS": "acme, bolt,,"}) == {"acme", "bolt"}
    assert blocked_by_environment({}) == frozenset()


def test_a_distribution_with_unreadable_metadata_is_reported(packages: PluginPackages) -> None:
    packages.install("bad")
    (packages.folder / "bad-1.2.dist-info" / "entry_points.txt").write_bytes(b"[drivetrain.backends]\n\xff\xfe = x\n")
    packages.install("acme")
    discovery = discover()
    state = rejected(discovery, "bad")
    assert state.status is Status.BROKEN
    assert state.reason.startswith(f"the metadata in {packages.folder}/bad-1.2.dist-info cannot be read: Unicode")
    assert state.next_step == "install the package again"
    assert "acme" in names(discovery)


def test_a_distribution_without_a_name_is_reported(packages: PluginPackages) -> None:
    packages.install("bad")
    (packages.folder / "bad-1.2.dist-info" / "METADATA").unlink()
    state = rejected(discover(), "bad")
    assert state.status is Status.BROKEN
    assert state.reason == (
        f"the metadata in {packages.folder}/bad-1.2.dist-info cannot be read: ValueError: it has no name or no version"
    )


def test_an_entry_point_may_name_an_object_and_extras(packages: PluginPackages) -> None:
    source = plugin_source("acme").replace("@hookimpl\ndef drivetrain_backends():", "def _list():") + (
        "class Plugin:\n    @hookimpl\n    def drivetrain_backends(self):\n        return _list()\nplugin = Plugin()\n"
    )
    packages.install("acme", source, entry_points="[drivetrain.backends]\nacme = acme_plugin:plugin [extra]\n")
    assert "acme" in names(discover())


def test_a_distribution_found_twice_counts_once(packages: PluginPackages, tmp_path_factory: pytest.TempPathFactory,
                                                monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    packages.install("acme", version="1.0")
    newer = tmp_path_factory.mktemp("first_on_the_path")
    monkeypatch.syspath_prepend(newer)
    PluginPackages(folder=newer).install("acme", version="2.0")
    versions = [backend.origin.version for backend in discover().found if backend.spec.name == "acme"]
    assert versions == ["2.0"]
