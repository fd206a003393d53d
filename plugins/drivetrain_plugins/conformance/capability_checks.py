"""What a device says about itself: sane, fixed, and answered before work begins."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import get_args

from drivetrain_plugins.conformance.check import check, need, require
from drivetrain_plugins.conformance.subject import Subject
from drivetrain_plugins.conformance.tiny_llama import tiny_limits, tiny_spec
from drivetrain_plugins.contract.capabilities import (
    EVERY_SAMPLING_FEATURE,
    AttentionFeature,
    Capabilities,
    Dtype,
    Fp8Flavour,
    KVDtype,
)
from drivetrain_plugins.contract.executor import ExecutorLimits
from drivetrain_plugins.contract.model import DecoderSpec
from drivetrain_plugins.contract.shapes import ShapePolicy
from drivetrain_plugins.contract.weight_formats import WEIGHT_FORMATS

_UNCALLABLE = frozenset({"mla"})


@check()
def values_are_in_range(subject: Subject) -> None:
    """Types, names and sizes that core can rely on."""
    found = subject.capabilities
    require(type(found) is Capabilities, f"capabilities: got {type(found).__name__}, expected Capabilities")
    require(bool(found.device_name.strip()), "capabilities.device_name: got an empty name")
    _names("dtypes", found.dtypes, get_args(Dtype), least=1)
    _names("kv_dtypes", found.kv_dtypes, get_args(KVDtype), least=1)
    _names("attention", tuple(found.attention), get_args(AttentionFeature))
    _names("sampling", tuple(found.sampling), tuple(EVERY_SAMPLING_FEATURE))
    require(found.fp8 in get_args(Fp8Flavour), f"capabilities.fp8: got {found.fp8!r}")
    claimed = _UNCALLABLE & found.attention
    require(not claimed, f"capabilities.attention: {sorted(claimed)} cannot be called in this contract version")
    sizes = found.page_sizes
    require(
        bool(sizes) and len(set(sizes)) == len(sizes) and min(sizes) >= 1,
        f"capabilities.page_sizes: got {sizes}, expected distinct positive sizes",
    )
    for name in ("max_head_dim", "step_tokens", "max_ranks"):
        require(getattr(found, name) >= 1, f"capabilities.{name}: got {getattr(found, name)}, expected at least 1")
    require(found.memory_bytes >= 0, f"capabilities.memory_bytes: got {found.memory_bytes}")


@check()
def values_do_not_change(subject: Subject) -> None:
    """Reading them again, or opening the device again, gives the same."""
    before = subject.capabilities
    require(subject.device.capabilities == before, "capabilities changed between two reads")
    subject.close()
    require(subject.device.capabilities == before, "capabilities changed when the device was opened again")


@check()
def a_plain_model_is_supported(subject: Subject) -> None:
    """`unsupported` has nothing against a small Llama within the capabilities."""
    for dtype in subject.capabilities.dtypes:
        reasons = subject.device.unsupported(tiny_spec(), _with_dtype(subject, dtype))
        require(reasons == [], f"unsupported: a small Llama in {dtype} was refused: {reasons}")


@check()
def what_is_not_served_is_refused_with_reasons(subject: Subject) -> None:
    """Types, page sizes, heads and attention beyond the capabilities are named before work begins."""
    found, limits, spec = subject.capabilities, tiny_limits(subject.capabilities), tiny_spec()
    for dtype in set(get_args(Dtype)) - set(found.dtypes):
        _refused(subject, f"dtype {dtype}", spec, replace(limits, dtype=dtype))
    for kv_dtype in set(get_args(KVDtype)) - set(found.kv_dtypes):
        _refused(subject, f"KV dtype {kv_dtype}", spec, replace(limits, kv_dtype=kv_dtype))
    odd = max(found.page_sizes) * 2 + 1
    _refused(subject, f"page size {odd}", spec, replace(limits, page_size=odd))
    large = _with_mixer(spec, head_dim=found.max_head_dim * 2)
    _refused(subject, f"heads of {found.max_head_dim * 2}", large, limits)
    variants: dict[AttentionFeature, DecoderSpec] = {
        "window": _with_mixer(spec, window=8),
        "soft_cap": _with_mixer(spec, soft_cap=30.0),
        "sinks": _with_mixer(spec, sinks=True),
        "alibi": _with_mixer(spec, alibi_slopes=(0.5,) * spec.layers[0].mixer.num_heads),
    }
    for feature, variant in variants.items():
        if feature not in found.attention:
            _refused(subject, f"attention with {feature}", variant, limits)


@check()
def shape_policy_is_consistent(subject: Subject) -> None:
    """Buckets ascend, fit the limits, and captures are only asked for where graphs are claimed."""
    limits = tiny_limits(subject.capabilities)
    policy = subject.device.shape_policy(limits)
    require(type(policy) is ShapePolicy, f"shape_policy: got {type(policy).__name__}, expected ShapePolicy")
    for name in ("row_buckets", "mixed_row_buckets", "token_buckets", "page_buckets", "total_page_buckets"):
        buckets = getattr(policy, name)
        ascending = all(low < high for low, high in itertools.pairwise(buckets))
        require(ascending and min(buckets, default=1) >= 1, f"shape_policy.{name}: got {buckets}, expected ascending")
    if not subject.capabilities.graphs:
        captured = policy.max_captured_rows or policy.max_captured_tokens
        require(not captured, "shape_policy: asks for captured steps, but capabilities.graphs is False")
    require(
        policy.max_prefills_per_step is None or policy.max_prefills_per_step >= 1,
        f"shape_policy.max_prefills_per_step: got {policy.max_prefills_per_step}",
    )
    most = policy.max_total_pages
    require(
        most is None or most >= limits.max_pages,
        f"shape_policy.max_total_pages: got {most}, expected at least the {limits.max_pages} pages of the longest row",
    )
    last = policy.total_page_buckets[-1:]
    require(
        most is None or not last or most <= last[0],
        f"shape_policy.max_total_pages: got {most}, expected at most {last}, the end of total_page_buckets",
    )
    for rows in range(1, limits.max_num_rows + 1):
        policy.pad(rows=rows, tokens=rows, pages=limits.max_pages, decode_only=True)
    prefills = policy.max_prefills_per_step or limits.max_num_rows
    rows = limits.max_num_rows if policy.mixed_steps else min(prefills, limits.max_num_rows)
    shape = policy.pad(rows=rows, tokens=limits.max_step_tokens, pages=limits.max_pages, decode_only=False)
    if shape.tokens > limits.max_step_tokens and shape.rows == rows:
        policy.pad(rows=rows + 1, tokens=shape.tokens, pages=limits.max_pages, decode_only=False)


@check("quantized")
def claimed_formats_are_defined(subject: Subject) -> None:
    """Every claimed weight format is one that the contract defines: core brings weights in no other."""
    claimed = subject.capabilities.quantizations
    need(bool(claimed), "capabilities.quantizations is empty")
    unknown = sorted(claimed - set(WEIGHT_FORMATS))
    require(
        not unknown,
        f"capabilities.quantizations: the contract defines no format named {unknown}, only {', '.join(WEIGHT_FORMATS)}",
    )


def _names(field: str, got: tuple[str, ...], known: tuple[str, ...], *, least: int = 0) -> None:
    sane = len(got) >= least and len(set(got)) == len(got) and set(got) <= set(known)
    require(sane, f"capabilities.{field}: got {got}, expected at least {least} distinct names of {known}")


def _with_dtype(subject: Subject, dtype: Dtype) -> ExecutorLimits:
    kv_dtypes = subject.capabilities.kv_dtypes
    limits = tiny_limits(subject.capabilities)
    return replace(limits, dtype=dtype, kv_dtype=dtype if dtype in kv_dtypes else kv_dtypes[0])


def _with_mixer(spec: DecoderSpec, **changes: object) -> DecoderSpec:
    layer = spec.layers[0]
    changed = replace(layer, mixer=replace(layer.mixer, **changes))  # pyright: ignore[reportArgumentType]
    return replace(spec, layers=(changed, *spec.layers[1:]))


def _refused(subject: Subject, what: str, spec: DecoderSpec, limits: ExecutorLimits) -> None:
    reasons = subject.device.unsupported(spec, limits)
    sound = bool(reasons) and all(type(reason) is str and reason.strip() for reason in reasons)
    require(sound, f"unsupported: {what} is not claimed, expected reasons, got {reasons!r}")
