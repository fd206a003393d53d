"""A probe that misbehaves breaks its own backend, says how, and nothing else; none runs in this process."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from drivetrain_plugins.discovery import FoundBackend
from drivetrain_plugins.probing import probe_backends
from drivetrain_plugins.spec import BackendSpec
from drivetrain_plugins.status import BackendState, Origin, Status
from fakes.waiting import LIMIT_S, until
from plugin_packages import PluginPackages

RESULT = "from drivetrain_plugins.spec import ProbeResult, DeviceInfo\ndef probe():\n    return "


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PluginPackages:
    monkeypatch.syspath_prepend(tmp_path)
    return PluginPackages(folder=tmp_path)


def found(name: str, *, probe: str = "") -> FoundBackend:
    spec = BackendSpec(
        name=name,
        contract=(1, 1),
        priority=50,
        probe=probe or f"{name}_probe:probe",
        backend=f"{name}_backend:Backend",
        description="a made-up device",
    )
    origin = Origin(distribution=name, version="1.2", entry_point=name, target=f"{name}_plugin")
    return FoundBackend(spec=spec, origin=origin)


def probe_one(packages: PluginPackages, source: str, *, time_limit_s: float = LIMIT_S) -> BackendState:
    packages.install("acme", probe=source)
    (state,) = probe_backends([found("acme")], time_limit_s=time_limit_s)
    return state


def test_a_ready_backend_gives_its_devices(packages: PluginPackages) -> None:
    packages.install("acme")
    (state,) = probe_backends([found("acme")])
    assert state.status is Status.READY
    assert state.reason == ""
    assert [(device.name, device.free_memory_bytes) for device in state.devices] == [("Acme X1", 512)]
    assert state.details == {"driver": "7.1"}
    assert "acme_probe" not in sys.modules


def test_a_probe_imports_nothing_from_the_folder_that_it_is_started_in(
    packages: PluginPackages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.install("acme")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "json.py").write_text("raise SystemExit('a file of that name lay here')\n")
    monkeypatch.chdir(folder)
    (state,) = probe_backends([found("acme")], time_limit_s=LIMIT_S)
    assert (state.status, state.reason) == (Status.READY, "")


def test_a_backend_that_is_not_ready_gives_its_reason_and_next_step(packages: PluginPackages) -> None:
    state = probe_one(packages, RESULT + "ProbeResult(ready=False, reason='no driver', next_step='load acme.ko')")
    assert state.status is Status.UNAVAILABLE
    assert (state.reason, state.next_step) == ("no driver", "load acme.ko")
    assert not state.idle_hardware


def test_a_backend_that_finds_its_hardware_and_cannot_use_it_says_so(packages: PluginPackages) -> None:
    state = probe_one(packages, RESULT + "ProbeResult(ready=False, reason='old driver', idle_hardware=True)")
    assert (state.status, state.idle_hardware) == (Status.UNAVAILABLE, True)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        pytest.param(
            "def probe():\n    raise RuntimeError('ioctl failed')",
            "the probe 'acme_probe:probe' raised RuntimeError: ioctl failed ({folder}/acme_probe.py:2)",
            id="raises",
        ),
        pytest.param(
            "import sys\ndef probe():\n    sys.exit('licence expired')",
            "the probe 'acme_probe:probe' raised SystemExit: licence expired ({folder}/acme_probe.py:3)",
            id="exits",
        ),
        pytest.param("import os\ndef probe():\n    os.abort()", "its probe was killed by SIGABRT", id="aborts"),
        pytest.param(
            "import os, signal\ndef probe():\n    os.kill(os.getpid(), signal.SIGSEGV)",
            "its probe was killed by SIGSEGV",
            id="segfaults",
        ),
        pytest.param(
            "import os\ndef probe():\n    os._exit(9)", "its probe exited with code 9 before it answered", id="vanishes"
        ),
        pytest.param(
            "def probe():\n    return {'ready': True}",
            "the probe 'acme_probe:probe' returned dict, expected ProbeResult",
            id="returns junk",
        ),
        pytest.param(
            RESULT + "ProbeResult(ready='yes', reason='?', devices=({},))",
            "its probe gave a malformed answer: Expected `bool`, got `str` - at `$.result.ready`",
            id="wrong types",
        ),
        pytest.param(
            RESULT + "ProbeResult(ready=False, reason='x', details={'handle': object()})",
            "its answer cannot be sent as JSON: object is neither text, number, boolean, list nor mapping",
            id="not data",
        ),
        pytest.param(
            RESULT + "ProbeResult(ready=True)",
            "the probe 'acme_probe:probe' raised ValueError: devices: got none from a probe that says ready, "
            "expected at least one",
            id="ready without a device",
        ),
        pytest.param(
            RESULT + "ProbeResult(ready=False)",
            "the probe 'acme_probe:probe' raised ValueError: reason: got none from a probe that says not ready, "
            "expected why",
            id="no reason",
        ),
        pytest.param(
            "import os\ndef probe():\n    [os.write(fd, b'junk\\n') for fd in range(3, 1024) if is_open(fd)]\n"
            "def is_open(fd):\n    try: os.fstat(fd)\n    except OSError: return False\n    return True",
            "its probe gave a malformed answer: JSON is malformed: invalid character (byte 0)",
            id="writes junk on the pipe",
        ),
        pytest.param(
            "import os\ndef probe():\n    [close(fd) for fd in range(3, 1024)]\n    os._exit(0)\n"
            "def close(fd):\n    try: os.close(fd)\n    except OSError: pass",
            "its probe exited with code 0 before it answered",
            id="closes the pipe",
        ),
        pytest.param(
            "import no_such_sdk",
            "importing the probe 'acme_probe:probe' raised ModuleNotFoundError: No module named 'no_such_sdk' "
            "({folder}/acme_probe.py:1)",
            id="cannot be imported",
        ),
        pytest.param(
            "x = 1",
            "importing the probe 'acme_probe:probe' raised AttributeError: module 'acme_probe' has no attribute "
            "'probe'",
            id="is not there",
        ),
    ],
)
def test_a_probe_that_fails_makes_its_backend_broken_with_the_reason(
    packages: PluginPackages, source: str, reason: str
) -> None:
    state = probe_one(packages, source)
    assert state.status is Status.BROKEN
    expected = reason.format(folder=packages.folder) if "{folder}" in reason else reason
    assert state.reason.startswith(expected)
    assert state.next_step == "report it to the makers of acme 1.2, or choose another backend"


def test_printed_junk_neither_breaks_a_probe_nor_reaches_our_output(
    packages: PluginPackages, capfd: pytest.CaptureFixture[str]
) -> None:
    packages.install("acme")
    source = packages.folder / "acme_probe.py"
    source.write_text("print('{\"failure\": \"x\"}')\nimport os; os.write(2, b'warning\\n')\n" + source.read_text())
    (state,) = probe_backends([found("acme")])
    assert state.status is Status.READY
    assert capfd.readouterr() == ("", "")


def test_the_last_lines_of_a_crashed_probe_are_kept(packages: PluginPackages) -> None:
    state = probe_one(packages, "import os\ndef probe():\n    os.write(2, b'acme: bad firmware\\n'); os.abort()")
    assert state.output[0] == "acme: bad firmware"
    assert "Fatal Python error: Aborted" in state.output
    assert any("acme_probe.py" in line for line in state.output)


def test_a_hanging_probe_is_killed_with_its_own_children_and_the_others_are_not(packages: PluginPackages) -> None:
    witness = packages.folder / "grandchild"
    packages.install(
        "slow",
        probe=f"""
        import subprocess, time
        def probe():
            child = subprocess.Popen(["sleep", "600"])
            open({str(witness)!r}, "w").write(str(child.pid))
            time.sleep(600)
        """,
    )
    packages.install("acme")
    for limit_s in (0.8, 4.0, 20.0):  # until a sound probe answers within it on this machine
        started = time.monotonic()
        slow, acme = probe_backends([found("slow"), found("acme")], time_limit_s=limit_s)
        assert time.monotonic() - started < limit_s + LIMIT_S
        assert slow.status is Status.BROKEN
        assert slow.reason == f"its probe did not answer within {limit_s:g} s"
        if acme.status is Status.READY and witness.exists():
            break
    assert acme.status is Status.READY
    child = int(witness.read_text())
    until(lambda: not is_running(child))


def test_a_probe_that_leaves_a_process_behind_does_not_hold_up_the_answer(packages: PluginPackages) -> None:
    packages.install("acme")
    source = packages.folder / "acme_probe.py"
    source.write_text("import os, time\nif os.fork() == 0: time.sleep(600)\n" + source.read_text())
    started = time.monotonic()
    (state,) = probe_backends([found("acme")], time_limit_s=LIMIT_S)
    assert state.status is Status.READY
    assert time.monotonic() - started < 2 * LIMIT_S


def test_probes_run_at_the_same_time(packages: PluginPackages) -> None:
    """None answers before all have begun."""
    names = ("one", "two", "three")
    begun = [str(packages.folder / f"{name}.begun") for name in names]
    for name, own in zip(names, begun, strict=True):
        packages.install(
            name,
            probe=f"""
            import os, time
            from drivetrain_plugins.spec import ProbeResult
            def probe():
                open({own!r}, "w").close()
                while not all(map(os.path.exists, {begun!r})):
                    time.sleep(0.01)
                return ProbeResult(ready=False, reason="all have begun")
            """,
        )
    states = probe_backends([found(name) for name in names], time_limit_s=LIMIT_S)
    assert [(state.name, state.reason) for state in states] == [(name, "all have begun") for name in names]


def test_a_missing_interpreter_is_a_reason_and_no_exception(
    packages: PluginPackages, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.install("acme")
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    (state,) = probe_backends([found("acme")])
    assert state.reason == (
        "its probe could not be started: [Errno 2] No such file or directory: '/nonexistent/python'"
    )


def test_no_descriptor_is_left_open(packages: PluginPackages) -> None:
    packages.install("acme")
    packages.install("bad", probe="import os; os.abort()")
    before = len(os.listdir("/dev/fd"))
    probe_backends([found("acme"), found("bad")])
    assert len(os.listdir("/dev/fd")) == before


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie that waits for the reaper."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
