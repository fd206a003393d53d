"""`drivetrain ls`, `pull`, and which model a command means."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from drivetrain import model_store
from drivetrain.config import Config, EngineConfig, ServerConfig
from drivetrain.errors import ConfigError, ModelNotFound
from drivetrain_server.cli.app import build_app
from drivetrain_server.cli.doctor import findings
from drivetrain_server.cli.models import with_model


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "models"


def store(home, *names: str) -> None:
    home.mkdir(parents=True)
    for name in names:
        (home / f"{name}.gguf").write_bytes(b"x" * 2048)


def config(model: str = "") -> Config:
    return Config(engine=EngineConfig(model=model), server=ServerConfig(), origins={})


def invoke(*arguments: str):
    return CliRunner().invoke(build_app(arguments[0]), list(arguments))


def test_ls_lists_local_models(home):
    store(home, "one", "two")
    assert [line.split() for line in invoke("ls").stdout.splitlines()] == [
        ["model", "size", "where"],
        ["one", "2KiB", str(home / "one.gguf")],
        ["two", "2KiB", str(home / "two.gguf")],
    ]
    assert json.loads(invoke("ls", "--json").stdout) == [
        {"name": name, "path": str(home / f"{name}.gguf"), "num_bytes": 2048} for name in ("one", "two")
    ]


def test_ls_of_nothing_says_how_to_get_a_model():
    assert f"`drivetrain pull {model_store.QUICK_START_MODEL}` gets a small one" in invoke("ls").stdout
    assert json.loads(invoke("ls", "--json").stdout) == []


def test_pull_prints_where_the_model_is(home, monkeypatch):
    store(home, "one")
    assert invoke("pull", "one").stdout == f"{home / 'one.gguf'}\n"
    assert json.loads(invoke("pull", "one", "--json").stdout) == {"name": "one", "path": str(home / "one.gguf")}
    assert isinstance(invoke("pull", "nothing").exception, ModelNotFound)


def test_the_only_model_is_taken_and_told(home, capsys):
    store(home, "one")
    assert with_model(config()).engine.model == "one"
    assert capsys.readouterr().err == "drivetrain: using one, the only model on this machine\n"


@pytest.mark.parametrize(
    ("names", "message"),
    [((), f"for example {model_store.QUICK_START_MODEL}"), (("one", "two"), "one of one, two")],
)
def test_no_model_is_guessed(home, names, message):
    store(home, *names)
    with pytest.raises(ConfigError, match=message):
        with_model(config())


def test_model_that_is_not_there_is_told_before_anything_starts(home):
    store(home, "one")
    with pytest.raises(ModelNotFound, match="'two'"):
        with_model(config("two"))


def test_doctor_checks_the_configured_model(home, monkeypatch, tmp_path):
    store(home, "one")
    (tmp_path / "drivetrain.toml").write_text('model = "two"\n')
    found = {finding.name: finding for finding in findings(None)}
    assert found["models"].found == "one"
    assert found["model"].status == "problem"
    assert "'two'" in found["model"].found


def test_ls_cuts_no_path_where_programs_read_it(tmp_path, monkeypatch):
    home = tmp_path / ("deep" * 40)
    (home / "models").mkdir(parents=True)
    (home / "models" / "tiny.gguf").touch()
    monkeypatch.setenv("DRIVETRAIN_HOME", str(home))
    monkeypatch.setenv("COLUMNS", "80")
    shown = CliRunner().invoke(build_app("ls"), ["ls"]).stdout
    assert str(home / "models" / "tiny.gguf") in shown
