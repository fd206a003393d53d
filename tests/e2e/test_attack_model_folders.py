"""Model folders, configurations and ports that are wrong: one clear message and an exit status, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drivetrain.assembly import assemble
from drivetrain.config import EngineConfig
from drivetrain.errors import DrivetrainError
from drivetrain.frontend import load_frontend
from drivetrain_server.cli import main
from drivetrain_server.cli.entry import error_block
from fakes.serve_process import MAIN, ServeProcess
from fakes.tiny_model import tiny_tensors, write_tiny_model

BASE = 'dtype = "float32"\n[limits]\nnum_pages = 64\n[backend_options.cpu]\nthreads = 1\n'
PAYLOAD = "import pathlib\npathlib.Path(__file__).with_name('stolen').write_text('x')\n"


def _refusal(model: Path, **settings: Any) -> str:
    """What the engine and the text layer say of a model that cannot be served, as a user reads it."""
    config = EngineConfig(
        model=str(model), **{"dtype": "float32", "num_pages": 64, "backend_options": {"cpu": {"threads": 1}}} | settings
    )
    with pytest.raises(DrivetrainError) as caught:
        load_frontend(config, assemble(config))
    return error_block(caught.value)


def _serve(folder: Path, *arguments: str, config: str = BASE, **environment: str) -> tuple[int, str]:
    """(exit status, what it printed) of a server that cannot start."""
    (folder / "drivetrain.toml").write_text(config)
    ended = subprocess.run(
        [sys.executable, "-c", MAIN, "serve", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def _assert_clear(printed: str, *words: str) -> None:
    assert "Traceback" not in printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, printed
    block = printed[printed.index("error: ") :]
    assert all(word in block for word in words), block
    assert " object at 0x" not in block
    assert len(block) < 1500


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def _cut_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def _huge_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def _wrong_shape(folder: Path) -> None:
    tensors = tiny_tensors()
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(95, 64)
    shutil.rmtree(folder)
    write_tiny_model(folder, tensors=tensors)


def _missing_tensor(folder: Path) -> None:
    tensors = tiny_tensors()
    del tensors["model.layers.0.self_attn.k_proj.weight"]
    shutil.rmtree(folder)
    write_tiny_model(folder, tensors=tensors)


def _only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(1)}, folder / "pytorch_model.bin")


def _write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


BROKEN: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    "no config": (_remove("config.json"), ("config.json",)),
    "no weights": (_remove("model.safetensors"), ("safetensors",)),
    "no tokenizer": (_remove("tokenizer.json"), ("tokenizer",)),
    "config is no JSON": (_write("config.json", "{"), ("config.json", "not JSON")),
    "tokenizer is no JSON": (_write("tokenizer.json", "[]"), ("tokenizer.json",)),
    "truncated weights": (_truncate, ("model.safetensors",)),
    "truncated header": (_cut_header, ("model.safetensors", "header")),
    "header past the file": (_huge_header, ("model.safetensors", "header")),
    "wrong shape": (_wrong_shape, ("model.layers.1.mlp.up_proj.weight", "95", "96")),
    "missing tensor": (_missing_tensor, ("model.layers.0.self_attn.k_proj.weight",)),
    "pickled weights": (_only_pickle, ("safetensors",)),
    "unknown architecture": (
        lambda folder: _edit(folder, architectures=["EvilForCausalLM"], model_type="evil"),
        ("EvilForCausalLM", "Served: "),
    ),
    "heads do not divide": (lambda folder: _edit(folder, num_key_value_heads=3), ("num_key_value_heads",)),
    "no layers": (lambda folder: _edit(folder, num_hidden_layers=-1), ("num_hidden_layers",)),
    "a word for a number": (lambda folder: _edit(folder, hidden_size="64"), ("hidden_size",)),
    "huge model": (lambda folder: _edit(folder, hidden_size=2**40), ("TiB as float32", "smaller model")),
    "vocabulary of the config too large": (lambda folder: _edit(folder, vocab_size=2**20), ("embed_tokens", "1048576")),
    "end id is a word": (_write("generation_config.json", '{"eos_token_id": "x"}'), ("eos_token_id",)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_model_folder_is_named(tmp_path: Path, name: str) -> None:
    spoil, words = BROKEN[name]
    folder = write_tiny_model(tmp_path / "model")
    spoil(folder)
    _assert_clear(_refusal(folder), str(folder), *words)


@pytest.mark.parametrize("spoil", [_wrong_shape, _remove("tokenizer.json")], ids=["in the engine", "in the server"])
def test_a_broken_model_folder_ends_the_server_with_one_message(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    folder = write_tiny_model(tmp_path / "model")
    spoil(folder)
    status, printed = _serve(tmp_path, "--model", str(folder), "--port", "0")
    _assert_clear(printed, str(folder))
    assert status == 1


def test_code_of_a_model_folder_is_never_run(tmp_path: Path) -> None:
    maps = {"AutoConfig": "configuration_evil.Config", "AutoModelForCausalLM": "modeling_evil.Model"}
    folder = write_tiny_model(tmp_path / "model", auto_map=maps, trust_remote_code=True)
    for name in ("configuration_evil", "modeling_evil", "tokenization_evil", "__init__"):
        (folder / f"{name}.py").write_text(PAYLOAD)
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["tokenization_evil.T", None]}, "tokenizer_class": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with ServeProcess(tmp_path, folder, BASE) as server:  # its files are data: it is served as the Llama that it is
        assert server.complete(prompt="Hi", max_tokens=2)["usage"]["completion_tokens"] == 2
    _edit(folder, architectures=["EvilForCausalLM"], model_type="evil")
    _assert_clear(_refusal(folder), "EvilForCausalLM")
    assert not (folder / "stolen").exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("max_modl_len = 5\n", ("max_modl_len", "max_model_len")),
        ("[limit]\nnum_pages = 5\n", ("limit", "limits")),
        ("[limits]\nnum_pages = -5\n", ("num_pages", "-5")),
        ("[limits]\nnum_pages = nan\n", ("num_pages",)),
        ("[server]\nport = 99999\n", ("server.port", "99999")),
        ('[server]\nhost = "0.0.0.0"\n', ("server.host", "API key")),
        ("[limits\n", ("drivetrain.toml",)),
        ("[parallel]\ntensor_parallel = 2\n", ("tensor_parallel",)),
    ],
)
def test_a_wrong_configuration_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    config: str,
    words: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drivetrain.toml").write_text(config)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "--model", "never-looked-at"])
    _assert_clear(capsys.readouterr().err, *words)
    assert ended.value.code == 2


def test_options_that_the_backend_does_not_know_are_named(tiny_model: Path) -> None:
    _assert_clear(_refusal(tiny_model, backend_options={"cpu": {"thread": 1}}), "backend_options.cpu", '"threads"')


def test_a_backend_that_is_not_here_is_named(tiny_model: Path) -> None:
    _assert_clear(_refusal(tiny_model, backend="tpu"), "tpu", "cpu")


def test_a_model_that_does_not_exist_is_named(tmp_path: Path) -> None:
    status, printed = _serve(tmp_path, "--model", str(tmp_path / "nothing"))
    _assert_clear(printed, "nothing")
    assert status == 2


def test_a_taken_port_is_named(tmp_path: Path, tiny_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, printed = _serve(tmp_path, "--model", str(tiny_model), "--port", str(port))
    _assert_clear(printed, str(port), "in use")
    assert status == 2


def test_keys_are_not_shown_by_what_the_server_prints(tmp_path: Path, tiny_model: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        _, printed = _serve(
            tmp_path, "--model", str(tiny_model), "--port", port, "--debug", DRIVETRAIN_API_KEYS="very-secret"
        )
    assert "in use" in printed
    assert "very-secret" not in printed
