"""What cannot fit into the device's memory is refused before anything is loaded, in the words of its setting."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drivetrain import LLM
from drivetrain.config import EngineConfig
from drivetrain.errors import ConfigError, OutOfMemory
from drivetrain.memory import check_memory, exact_pages, num_parameters
from drivetrain.messages import Phase
from drivetrain_plugins.conformance.tiny_llama import tiny_limits, tiny_spec
from drivetrain_plugins.contract.capabilities import Capabilities
from fakes.tiny_model import write_tiny_model

SPEC = tiny_spec()
WEIGHTS = 4 * num_parameters(SPEC)
KIB = 1024


def device(memory_bytes: int) -> Capabilities:
    return Capabilities(
        device_name="Acme 9", dtypes=("float32",), kv_dtypes=("float32",), page_sizes=(16,), memory_bytes=memory_bytes
    )


def check(room: int, **settings: object) -> None:
    """Check a configuration on a device that has `room` bytes beside the weights."""
    config = EngineConfig(model="tiny", **settings)  # type: ignore[arg-type]
    capabilities = device(WEIGHTS + room)
    limits = replace(tiny_limits(capabilities), dtype="float32", kv_dtype="float32", page_size=16)
    kv_bytes = config.kv_memory if isinstance(config.kv_memory, int) else None
    limits = replace(limits, memory=replace(limits.memory, kv_bytes=kv_bytes))
    if config.num_pages is not None:
        limits = exact_pages(limits, SPEC, config.num_pages)
    check_memory(config, SPEC, limits, capabilities)


def test_a_size_may_take_just_what_the_weights_leave() -> None:
    check(1024 * KIB, kv_memory="1MiB")
    with pytest.raises(ConfigError) as caught:
        check(1024 * KIB - 1, kv_memory="1MiB")
    message = str(caught.value)
    assert message.startswith("limits.kv_memory: got 1MiB, but Acme 9 has ")
    assert "of which the weights of tiny take " in message
    assert message.endswith("lower it to at most 1024KiB, or leave it out")


def test_pages_are_counted_in_bytes_of_all_layers_keys_and_values() -> None:
    mixers = [layer.mixer for layer in SPEC.layers]
    page_bytes = sum(2 * mixer.num_kv_heads * mixer.head_dim * 4 * 16 for mixer in mixers)
    check(5 * page_bytes, num_pages=5)
    with pytest.raises(ConfigError, match=r"^limits.num_pages: got 6, which take .* lower it to at most 5, or leave"):
        check(5 * page_bytes, num_pages=6)


def test_a_share_must_be_more_than_the_weights() -> None:
    check(WEIGHTS, kv_memory="51%")
    with pytest.raises(ConfigError, match=r"^limits.kv_memory: got 50% of .*; raise it above 50%, or leave it out$"):
        check(WEIGHTS, kv_memory="50%")


def test_weights_alone_may_be_too_much() -> None:
    with pytest.raises(OutOfMemory, match="^the weights of tiny take .* as float32, but Acme 9 has .* a smaller model"):
        check(0)


def test_a_device_that_does_not_say_is_believed_to_have_enough() -> None:
    check(-WEIGHTS, kv_memory="500GiB")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_model(tmp_path_factory.mktemp("memory") / "tiny"))


@pytest.mark.parametrize("settings", [{"kv_memory": "9000TiB"}, {"num_pages": 1 << 40}])
def test_nothing_is_loaded_for_what_cannot_fit(model: str, settings: dict[str, object]) -> None:
    phases: list[Phase] = []
    (name,) = settings
    with pytest.raises(ConfigError, match=rf"^limits.{name}: got "):
        LLM(model, backend="cpu", backend_options={"cpu": {"threads": 1}}, on_phase=phases.append, **settings)
    assert {phase.name for phase in phases} == {"read model", "find device", "open device"}


def test_what_is_taken_by_others_is_refused_by_the_name_of_the_setting(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drivetrain_cpu import host_memory

    monkeypatch.setattr(host_memory, "available_memory_bytes", lambda: 1024 * KIB)
    expected = r"^limits.kv_memory is 4MiB: \d+ pages need 4,\d+,\d+ more bytes and 1,048,576 are free"
    with pytest.raises(OutOfMemory, match=expected):
        LLM(model, backend="cpu", backend_options={"cpu": {"threads": 1}}, kv_memory="4MiB")


def test_the_number_of_pages_is_exact(model: str) -> None:
    with LLM(model, backend="cpu", backend_options={"cpu": {"threads": 1}}, num_pages=77) as llm:
        assert llm.info.num_pages == 77
