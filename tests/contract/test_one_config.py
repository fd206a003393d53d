"""One `drivetrain.toml` starts on every backend; what each would run with it."""

from __future__ import annotations

import importlib.util
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from drivetrain.assembly import executor_limits, open_model
from drivetrain.config import load_config
from drivetrain.devices import choose, open_device
from drivetrain.errors import ConfigError
from drivetrain_plugins.contract.shapes import ShapePolicy
from plugin_packages import PluginPackages

CONFIG = """
model = "{model}"

[limits]
max_num_seqs = 32
max_step_tokens = 1024
max_model_len = 4096

[backend_options.cpu]
threads = 1

[backend_options.cuda]
batch_invariant = false

[backend_options.rocm]
batch_invariant = false

[backend_options.gaudi]
recipe_cache = "off"
"""
MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
    "eos_token_id": 128001,
}
PLUGIN = """
import dataclasses
from drivetrain_plugins.hooks import hookimpl
from drivetrain_{name} import plugin

@hookimpl
def drivetrain_backends():
    return [
        dataclasses.replace(spec, probe="drivetrain_probe:probe", backend="one_config_devices:{device}")
        for spec in plugin.drivetrain_backends()
    ]
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a start on one machine settles, in a form to read.

    Attributes:
        recorded: most rows and most tokens of a recorded step; zeros where none is.
        ranks: of those that the machine has room for, those that are used.
    """

    backend: str
    device: str
    dtype: str
    kv_dtype: str
    page_size: int
    recorded: tuple[int, int]
    ranks: int


DEVICES = {
    "cpu": "CpuWithoutBf16",
    "cuda": "CudaOnH100",
    "rocm": "RocmOnMi300",
    "gaudi": "GaudiOnStub",
}
PLANS = {
    "cpu": Plan(
        backend="cpu", device="thread", dtype="float32", kv_dtype="float32", page_size=16, recorded=(0, 0), ranks=1
    ),
    "cuda": Plan(
        backend="cuda", device="H100", dtype="bfloat16", kv_dtype="bfloat16", page_size=64, recorded=(32, 512), ranks=1
    ),
    "rocm": Plan(
        backend="rocm",
        device="MI300X",
        dtype="bfloat16",
        kv_dtype="bfloat16",
        page_size=64,
        recorded=(32, 512),
        ranks=1,
    ),
    "gaudi": Plan(
        backend="gaudi",
        device="GAUDI2",
        dtype="bfloat16",
        kv_dtype="bfloat16",
        page_size=128,
        recorded=(32, 1024),
        ranks=1,
    ),
}
HERE = [name for name in DEVICES if importlib.util.find_spec(f"drivetrain_{name}") is not None]


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL))
    path = tmp_path / "drivetrain.toml"
    path.write_text(CONFIG.format(model=model))
    return path


def install(folder: Path, names: Iterable[str]) -> None:
    """Drivetrain as it would be installed, with these backends, whose probes say ready."""
    folder.mkdir()
    listed = "".join(f"{name} = fake_{name}_plugin\n" for name in names)
    PluginPackages(folder=folder).install("drivetrain", entry_points=f"[drivetrain.backends]\n{listed}")
    for name in names:
        (folder / f"fake_{name}_plugin.py").write_text(PLUGIN.format(name=name, device=DEVICES[name]))


@pytest.mark.parametrize("name", HERE)
def test_each_machine_runs_its_own_plan_with_the_same_file(
    name: str, config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "machine")
    install(tmp_path / "machine", {"cpu", name})
    config = load_config(config_file).engine
    assert config.backend == "auto"
    spec = choose(config)
    device = open_device(config, spec)
    model = open_model(config)
    limits = executor_limits(config, model, device.capabilities)
    policy = device.shape_policy(limits)
    plan = Plan(
        backend=spec.name,
        device=device.capabilities.device_name,
        dtype=limits.dtype,
        kv_dtype=limits.kv_dtype,
        page_size=limits.page_size,
        recorded=(policy.max_captured_rows, policy.max_captured_tokens),
        ranks=1,
    )
    print(plan, policy, sep="\n")
    expected = PLANS[name]
    assert expected.device in plan.device
    assert replace(plan, device=expected.device) == expected
    assert device.unsupported(model.spec, limits) == []
    assert (limits.max_num_rows, limits.max_step_tokens, limits.max_model_len) == (32, 1024, 4096)
    assert bool(policy.row_buckets) == (name != "cpu")
    check_buckets(policy, pages=limits.max_pages)


def check_buckets(policy: ShapePolicy, *, pages: int) -> None:
    """Every step within the limits has a shape, and shapes are few."""
    for buckets in (policy.row_buckets, policy.mixed_row_buckets, policy.token_buckets, policy.page_buckets):
        assert all(low < high for low, high in itertools.pairwise(buckets))
        assert len(buckets) <= 32
    for rows in range(1, 33):
        shape = policy.pad(rows=rows, tokens=rows, pages=pages, decode_only=True, total_pages=rows * pages)
        assert shape.rows >= rows
    assert policy.pad(rows=1, tokens=1000, pages=pages, decode_only=False, total_pages=pages).tokens >= 1000


def test_tables_of_other_backends_are_inert_and_a_wrong_key_of_its_own_is_not(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "machine")
    install(tmp_path / "machine", {"cpu"})
    text = config_file.read_text()
    config_file.write_text(text.replace("batch_invariant", "no_such_key"))
    config = load_config(config_file).engine
    assert open_device(config, choose(config)).capabilities.dtypes[0] == "float32"
    config_file.write_text(text.replace("threads", "treads"))
    config = load_config(config_file).engine
    with pytest.raises(ConfigError, match=r'backend_options\.cpu: unknown option "treads"; did you mean "threads"\?'):
        open_device(config, choose(config))
    wrong = replace(config, backend_options={"cpu": {"threads": "two"}})
    with pytest.raises(ConfigError, match=r"backend_options\.cpu\.threads: got 'two'; expected `int`, got `str`"):
        open_device(wrong, choose(wrong))
