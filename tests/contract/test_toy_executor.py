"""A device with its own executor keeps the contract, and core drives it without a special case."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from drivetrain.assembly import assemble
from drivetrain.config import EngineConfig
from drivetrain.engine import Engine
from drivetrain.errors import ConfigError, OutOfMemory, RequestError, Unsupported
from drivetrain.messages import GenerateRequest
from drivetrain.sampling import SamplingParams
from drivetrain_plugins.conformance.run import run_conformance
from drivetrain_plugins.conformance.suite import BackendConformance
from drivetrain_plugins.contract.capabilities import EVERY_SAMPLING_FEATURE
from drivetrain_toy.backend import ToyBackend
from plugin_packages import PluginPackages
from tiny_llama_folder import VOCAB_SIZE, write_tiny_llama

LISTED = "[drivetrain.backends]\ntoy = drivetrain_toy.plugin\n"


class TestToy(BackendConformance):
    backend = "drivetrain_toy.backend:ToyBackend"


class Boastful(ToyBackend):
    """Claims a sampler that it has not."""

    def open(self, rank, options):
        device = super().open(rank, options)
        device.capabilities = replace(device.capabilities, sampling=EVERY_SAMPLING_FEATURE)
        return device


@pytest.mark.parametrize(
    "check", ["filters", "penalties", "biases", "log_probabilities_of", "prompt_log_probabilities"]
)
def test_claims_of_an_executor_s_sampler_are_held_against_it(check: str) -> None:
    report = run_conformance(Boastful, only=f"model.{check}")
    assert [result.outcome for result in report.results] == ["failed"], report


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_llama(tmp_path / "tiny")


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    PluginPackages(folder=tmp_path).install("drivetrain-toy", entry_points=LISTED)


def engine_on(backend: str, model: Path, **limits) -> Engine:
    return assemble(
        EngineConfig(
            model=str(model),
            backend=backend,
            dtype="float32",
            page_size=16,
            max_num_seqs=4,
            max_model_len=200,
            **limits,
        )
    )


def answers(engine: Engine, requests: list[GenerateRequest]) -> dict[tuple[str, int], list[int]]:
    for request in requests:
        engine.submit(request)
    ids: dict[tuple[str, int], list[int]] = {}
    while engine.has_work:
        for update in engine.step():
            assert update.error is None, update
            ids.setdefault((update.request_id, update.index), []).extend(update.token_ids)
    return ids


def requests(count: int) -> list[GenerateRequest]:
    rng = random.Random(7)
    head = [rng.randrange(6, VOCAB_SIZE) for _ in range(40)]
    return [
        GenerateRequest(
            request_id=str(index),
            prompt_ids=head[: rng.randint(0, 40)] + [rng.randrange(6, VOCAB_SIZE) for _ in range(rng.randint(1, 60))],
            params=SamplingParams(
                temperature=(0.0, 0.8)[index % 2], seed=index, max_tokens=rng.randint(1, 30), n=1 + index % 3 // 2
            ),
        )
        for index in range(count)
    ]


@pytest.mark.parametrize("limits", [{}, {"num_pages": 16}, {"max_step_tokens": 24}, {"overlap": "on"}])
def test_engine_on_the_toy_answers_like_the_engine_on_cpu(model: Path, limits: dict[str, object]) -> None:
    expected = answers(engine_on("cpu", model, backend_options={"cpu": {"threads": 1}}), requests(12))
    toy = engine_on("toy", model, **limits)
    assert toy.info.backend == "toy"
    assert answers(toy, requests(12)) == expected
    assert len(expected) > 12
    assert answers(toy, requests(12)) == expected
    toy.close()


def test_memory_that_the_device_has_not_is_refused_by_its_setting(model: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^limits.kv_memory: got 9000TiB, but numpy has .* of memory in all, of which"
    ):
        engine_on("toy", model, kv_memory="9000TiB")
    with pytest.raises(OutOfMemory, match=r"^limits.num_pages: got 1000000000, but toy has \d+; lower it$"):
        engine_on("toy", model, num_pages=1_000_000_000)


def test_toy_is_never_chosen_by_itself(model: Path) -> None:
    assert engine_on("auto", model).info.backend == "cpu"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("top_p", 0.9),
        ("top_k", 4),
        ("presence_penalty", 1.0),
        ("logit_bias", {3: 1.0}),
        ("logprobs", 1),
        ("min_tokens", 2),
    ],
)
def test_request_beyond_the_sampler_is_refused_by_its_field(model: Path, field: str, value: object) -> None:
    engine = engine_on("toy", model)
    params = SamplingParams(**{field: value})
    with pytest.raises(RequestError, match=f"{field}: got .* but numpy samples without") as caught:
        engine.submit(GenerateRequest(request_id="a", prompt_ids=[9], params=params))
    assert caught.value.param == field
    assert not engine.has_work


def test_model_beyond_the_toy_is_refused_before_it_loads(tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "biased", mlp_bias=True, attention_bias=True)
    with pytest.raises(Unsupported, match="toy cannot serve biased: the toy has no .*feed-forward part but gated silu"):
        engine_on("toy", model)


def test_options_are_refused_by_a_backend_that_takes_none(model: Path) -> None:
    with pytest.raises(ConfigError, match="takes no options"):
        engine_on("toy", model, backend_options={"toy": {"speed": 9}})


def test_an_engine_tells_of_settings_that_have_no_effect(model: Path) -> None:
    (warning,) = engine_on("toy", model, backend_options={"tooy": {"speed": 9}}).info.warnings
    assert "tooy" in warning
    assert engine_on("toy", model).info.warnings == ()
