"""ROCm's attention against dense float64: the same sources in the interpreter, on an NVIDIA GPU, and on an AMD one.

In the interpreter every part's configurations run. On a GPU of another vendor one part stands for all whose encodings
it has; what only AMD's units convert is left to the interpreter.
"""

from __future__ import annotations

import pytest
import torch

from decode_case import DTYPES, FP8_GATE, GATES, DecodeCase, head_norm, make_layer, relative_l2, rotary, spec
from drivetrain_plugins.contract.model import QKNormSpec
from drivetrain_rocm.attention import RocmAttention
from drivetrain_rocm.fp8 import kv_dtypes
from drivetrain_rocm.parts import PARTS, arch_of
from drivetrain_triton.attention import plan as attention_plan

STAND_IN = "gfx950"
FNUZ = {torch.float8_e4m3fnuz, torch.float8_e5m2fnuz}


def part_here() -> str | None:
    """The AMD part that kernels run on, None elsewhere."""
    if not torch.cuda.is_available() or torch.version.hip is None:
        return None
    return arch_of(torch.cuda.get_device_properties(0).gcnArchName)


@pytest.fixture(params=PARTS)
def part(request: pytest.FixtureRequest, device: torch.device) -> str:
    if device.type == "cuda" and request.param != (part_here() or STAND_IN):
        pytest.skip(f"needs {request.param}, or the interpreter")
    return request.param


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """Rows of a test's length are split, and the interpreter has little to do."""
    if device.type == "cpu":
        monkeypatch.setattr(attention_plan, "UNIT", 64)
        monkeypatch.setattr(attention_plan, "OVERHEAD", 8)
        monkeypatch.setattr(attention_plan, "SHARED_ROWS", 16)


def check(case: DecodeCase, part: str) -> torch.Tensor:
    got, truth = case.run(RocmAttention(arch=part, num_processors=8)), case.truth()
    gate = FP8_GATE if case.k.dtype.itemsize == 1 else GATES[case.dtype]
    assert relative_l2(got[: len(truth)], truth) <= gate, f"seed {case.seed}"
    assert got.isfinite().all()
    case.check_cache()
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_steps_with_prompts_and_single_tokens(device: torch.device, part: str, dtype: torch.dtype) -> None:
    """Prompts of every length around a block, chunks that continue rows, and rows of one token between them."""
    if device.type == "cpu" and dtype is torch.float16 and part != STAND_IN:
        pytest.skip("the interpreter runs fp16 on one part")
    layer = make_layer(spec(), device, rotary=rotary(64, device))
    lengths, counts = [33, 40, 17, 66, 2, 81], [33, 1, 2, 18, 2, 17]
    check(DecodeCase(layer=layer, device=device, dtype=dtype, lengths=lengths, counts=counts, padding=2), part)


@pytest.mark.parametrize("page", [32, 64, 128])
def test_blocks_within_pages(device: torch.device, part: str, page: int) -> None:
    layer = make_layer(spec(), device)
    lengths, counts = [70, 129, 65], [70, 1, 2]
    check(DecodeCase(layer=layer, device=device, dtype=torch.bfloat16, lengths=lengths, counts=counts, page=page), part)


@pytest.mark.parametrize("kind", ["window", "tiny window", "soft cap", "sinks", "alibi", "all"])
def test_every_kind(device: torch.device, part: str, kind: str) -> None:
    slopes, sinks = 2.0 ** -torch.arange(1.0, 5.0), torch.randn(4) + 1
    layer = {
        "window": make_layer(spec(window=20), device),
        "tiny window": make_layer(spec(window=1), device),
        "soft cap": make_layer(spec(soft_cap=1.5), device),
        "sinks": make_layer(spec(sinks=True), device, sinks_H=sinks),
        "alibi": make_layer(spec(), device, alibi_H=slopes),
        "all": make_layer(spec(window=30, soft_cap=5.0, sinks=True), device, sinks_H=sinks, alibi_H=slopes),
    }[kind]
    lengths, counts = [35, 70, 50], [35, 1, 19]
    check(DecodeCase(layer=layer, device=device, dtype=torch.float32, lengths=lengths, counts=counts), part)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size"), [(3, 3, 80), (7, 1, 96), (6, 2, 128), (71, 1, 64), (4, 1, 192), (2, 1, 256)]
)
def test_groups_and_head_sizes(device: torch.device, part: str, heads: int, kv_heads: int, size: int) -> None:
    if size > PARTS[part].max_head_dim:
        pytest.skip(f"{part} serves heads of {PARTS[part].max_head_dim} at most")
    if device.type == "cpu" and part not in ("gfx942", "gfx1100"):
        pytest.skip("one part of each family in the interpreter")
    layer = make_layer(spec(heads, kv_heads, size), device, rotary=rotary(size, device))
    check(DecodeCase(layer=layer, device=device, dtype=torch.bfloat16, lengths=[3, 40, 20], counts=[1, 1, 20]), part)


@pytest.mark.parametrize("name", ["fp8_e4m3", "fp8_e5m2"])
def test_fp8_pages_in_the_part_s_encoding(device: torch.device, part: str, name: str) -> None:
    stored = kv_dtypes(PARTS[part])[name]  # type: ignore[index]
    if device.type == "cuda" and stored in FNUZ and part_here() is None:
        pytest.skip("needs an AMD GPU: no other converts fnuz")
    layer = make_layer(spec(), device, rotary=rotary(64, device))
    case = DecodeCase(
        layer=layer, device=device, dtype=torch.bfloat16, kv_dtype=stored, lengths=[1, 17, 90, 30], counts=[1, 1, 1, 30]
    )
    case.qkv_TX[0, -1] = 1e6  # saturates
    check(case, part)


def test_norms_are_fused_and_shared_pages_are_read_once(device: torch.device, part: str) -> None:
    norms = {name: head_norm(64, torch.float32, device) for name in ("q_norm", "k_norm")}
    qk_norm = QKNormSpec(norm=norms["q_norm"].spec)
    layer = make_layer(spec(qk_norm=qk_norm), device, rotary=rotary(64, device, interleaved=True), **norms)
    check(
        DecodeCase(
            layer=layer,
            device=device,
            dtype=torch.float32,
            lengths=[145, 20, 130, 129, 200],
            groups=[((4, 0, 3, 2), 128)],
        ),
        part,
    )


def test_a_row_alone_and_among_others_gives_the_same_bits_when_asked(device: torch.device, part: str) -> None:
    layer = make_layer(spec(), device)
    invariant = RocmAttention(arch=part, num_processors=8, batch_invariant=True)
    case = DecodeCase(layer=layer, device=device, dtype=torch.float32, lengths=[130])
    alone = case.run(invariant)
    crowd = DecodeCase(layer=layer, device=device, dtype=torch.float32, lengths=[130, 200, 40])
    # The same row: its pages, its query, its new key and value.
    mine, theirs = (c.table[c.slots[0]].long()[torch.arange(130) // c.page] for c in (case, crowd))
    place = torch.arange(130) % case.page
    crowd.k[theirs, place], crowd.v[theirs, place] = case.k[mine, place], case.v[mine, place]
    crowd.qkv_TX[0] = case.qkv_TX[0]
    assert torch.equal(crowd.run(invariant)[0], alone[0])
