"""What `drivetrain doctor` finds, and what it advises."""

from __future__ import annotations

import os
import socket
from collections import namedtuple
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from drivetrain.config import ServerConfig, load_config
from drivetrain.errors import ConfigError
from drivetrain_server import diagnosis
from drivetrain_server.diagnosis import (
    check_config,
    check_cpu,
    check_disk,
    check_host,
    check_keys,
    check_memory,
    check_packages,
    check_port,
    check_python,
    check_torch,
)
from drivetrain_server.running import recorded
from drivetrain_server.serve import bind

Usage = namedtuple("Usage", "total used free")


def test_sound_machine_has_no_problem_and_names_each_check():
    found = list(check_host())
    assert [finding.name for finding in found] == ["python", "torch", "packages", "cpu", "memory"]
    assert not [finding for finding in found if finding.status == "problem"]
    assert all(bool(finding.next_step) == (finding.status != "ok") for finding in found)


def test_old_python_is_a_problem(monkeypatch):
    monkeypatch.setattr(diagnosis, "OLDEST_PYTHON", (99, 0))
    assert check_python().status == "problem"


def test_missing_packages_are_named_with_the_command_that_gets_them(monkeypatch):
    def version(name: str) -> str:
        if name in ("torch", "gguf", "msgspec"):
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(diagnosis, "version", version)
    assert check_torch().next_step == "pip install torch"
    assert check_packages().next_step == "pip install gguf msgspec"
    assert check_packages().status == "problem"


def test_build_of_torch_is_told(monkeypatch):
    monkeypatch.setattr(diagnosis, "version", lambda _: "2.11.0+cpu")
    assert check_torch().found == "2.11.0+cpu (cpu)"


def test_single_core_is_a_warning(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert check_cpu().status == "warning"
    assert "1 of" in check_cpu().found


def test_little_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(diagnosis, "_available_memory", lambda: 1024**3)
    finding = check_memory()
    assert finding.status == "warning"
    assert finding.found.startswith("1GiB available of ")


def test_disk_looks_at_the_nearest_folder_that_exists(monkeypatch, tmp_path):
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda _: Usage(10, 0, 5 * 1024**3))
    assert check_disk(tmp_path / "a" / "b").found == f"5GiB free for {tmp_path / 'a' / 'b'}"
    monkeypatch.setattr(diagnosis.shutil, "disk_usage", lambda _: Usage(10, 0, 1024**2))
    assert check_disk(tmp_path).status == "warning"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert check_disk(tmp_path / "a").status == "problem"
    assert str(tmp_path) in check_disk(tmp_path / "a").found


def test_taken_port_is_a_problem():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finding = check_port(ServerConfig(port=port))
        assert finding.status == "problem"
        assert finding.found == f"cannot listen on 127.0.0.1:{port}: Address already in use"
    assert check_port(ServerConfig(port=port)).status == "ok"


def test_port_of_ones_own_server_is_no_problem_and_serve_names_that_server(tmp_path, monkeypatch):
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = ServerConfig(port=taken.getsockname()[1])
        refused = f"cannot listen on 127.0.0.1 port {config.port}: Address already in use; "
        with pytest.raises(ConfigError, match=refused + "choose another port: --port N, or PORT=N of make serve$"):
            bind(config)
        with recorded(f"http://127.0.0.1:{config.port}", "tiny"):
            finding = check_port(config)
            own = rf"your server of tiny \(pid {os.getpid()}, `drivetrain ps`\) has it: end that one, or choose another"
            with pytest.raises(ConfigError, match=refused + own):
                bind(config)
    assert finding.status == "ok"
    assert finding.found == f"127.0.0.1:{config.port} is where your server of tiny listens (pid {os.getpid()})"


def test_wrong_configuration_is_told_in_its_own_words(tmp_path):
    path = tmp_path / "drivetrain.toml"
    path.write_text("[server]\nport = -1\n")
    finding, config = check_config(lambda: load_config(path))
    assert config is None
    assert finding.status == "problem"
    assert finding.found == f"{path}: server.port: got -1, expected a whole number from 0 to 65535"


def test_right_configuration_tells_what_the_environment_sets(tmp_path):
    finding, config = check_config(lambda: load_config(directory=tmp_path, env={"DRIVETRAIN_PORT": "1"}))
    assert finding.found == "no drivetrain.toml here; defaults; from the environment: DRIVETRAIN_PORT"
    assert config is not None


def test_key_file_that_others_can_read_is_a_warning(tmp_path):
    path: Path = tmp_path / "keys"
    path.write_text("secret\n")
    path.chmod(0o644)
    finding = check_keys(ServerConfig(api_keys_file=str(path)))
    assert (finding.status, finding.next_step) == ("warning", f"chmod 600 {path}")
    path.chmod(0o600)
    assert check_keys(ServerConfig(api_keys_file=str(path))).found == "1 API key"
    assert check_keys(ServerConfig()).found == "no API key; only this machine reaches 127.0.0.1"


@pytest.mark.parametrize("key", ["secret", "other"])
def test_keys_are_never_shown(key):
    assert key not in check_keys(ServerConfig(api_keys=(key,))).found
