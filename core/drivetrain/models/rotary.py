"""Tables of rotary angles for every kind of frequency scaling.

A table is fixed for the life of an engine, since keys that are already in pages cannot be turned again. Two kinds of
scaling change with the length of the sequence in their reference implementation ("dynamic" and "longrope"); here the
longest sequence that the engine admits decides, once: up to the checkpoint's original length they are left short or
unscaled, and beyond it they are those of a sequence of `max_model_len` tokens.

P positions, F rotary pairs.
"""

from __future__ import annotations

import math

import torch

from drivetrain_plugins.contract.attention import RotaryTable
from drivetrain_plugins.contract.model import RotarySpec


def rotary_table(spec: RotarySpec, *, max_model_len: int, positions: int, device: torch.device) -> RotaryTable:
    """Cosines and sines of every position, float32.

    Args:
        max_model_len: longest sequence; decides scalings that depend on length.
        positions: rows of the table, at least `max_model_len`.
    """
    inverse_F, factor = inverse_frequencies(spec, max_model_len)
    angles_PF = torch.arange(positions, dtype=torch.float32)[:, None] * inverse_F
    return RotaryTable(
        cos_PF=(angles_PF.cos() * factor).to(device),
        sin_PF=(angles_PF.sin() * factor).to(device),
        interleaved=spec.style == "interleaved",
    )


def inverse_frequencies(spec: RotarySpec, max_model_len: int) -> tuple[torch.Tensor, float]:
    """Radians a position of each pair, float32 (F), and the factor that cosines and sines are multiplied by."""
    numbers = dict(spec.parameters)
    match spec.scaling:
        case "none":
            return _plain(spec.dim, spec.base), 1.0
        case "linear":
            return _plain(spec.dim, spec.base) / numbers["factor"], 1.0
        case "dynamic":
            return _dynamic(spec, numbers, max_model_len), 1.0
        case "llama3":
            return _llama3(_plain(spec.dim, spec.base), numbers), 1.0
        case "yarn":
            return _yarn(spec, numbers), _yarn_factor(numbers)
        case "longrope":
            return _longrope(spec, numbers, max_model_len), _longrope_factor(numbers)


def _powers(dim: int, base: float) -> torch.Tensor:
    return base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _plain(dim: int, base: float) -> torch.Tensor:
    return 1.0 / _powers(dim, base)


def _dynamic(spec: RotarySpec, numbers: dict[str, float], max_model_len: int) -> torch.Tensor:
    """The base grows so that the slowest pair turns as far over the long sequence as it did over the original one."""
    original, factor = numbers["original_max_position_embeddings"], numbers["factor"]
    stretch = factor * max(max_model_len, original) / original - (factor - 1)
    return _plain(spec.dim, spec.base * stretch ** (spec.dim / (spec.dim - 2)))


def _llama3(inverse_F: torch.Tensor, numbers: dict[str, float]) -> torch.Tensor:
    """Slow pairs are divided by the factor, fast ones kept, those between interpolated by their turns."""
    factor, original = numbers["factor"], numbers["original_max_position_embeddings"]
    low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
    wavelength_F = 2 * math.pi / inverse_F
    blend_F = ((original / wavelength_F - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - blend_F) * inverse_F / factor + blend_F * inverse_F


def _yarn(spec: RotarySpec, numbers: dict[str, float]) -> torch.Tensor:
    """Pairs that turn less than `beta_slow` times are interpolated, more than `beta_fast` times kept, a ramp between.

    Source: "YaRN: Efficient Context Window Extension of Large Language Models", section 3.2.
    """
    dim, original = spec.dim, numbers["original_max_position_embeddings"]

    def pair_of(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(spec.base))

    first, last = pair_of(numbers.get("beta_fast", 32.0)), pair_of(numbers.get("beta_slow", 1.0))
    if numbers.get("truncate", 1.0):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    if first == last:
        last += 0.001
    ramp_F = ((torch.arange(dim // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    powers_F = _powers(dim, spec.base)
    return 1.0 / (numbers["factor"] * powers_F) * ramp_F + 1.0 / powers_F * (1 - ramp_F)


def _yarn_factor(numbers: dict[str, float]) -> float:
    if "attention_factor" in numbers:
        return numbers["attention_factor"]

    def magnitude(weight: float) -> float:
        factor = numbers["factor"]
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if numbers.get("mscale") and numbers.get("mscale_all_dim"):
        return magnitude(numbers["mscale"]) / magnitude(numbers["mscale_all_dim"])
    return magnitude(1.0)


def _longrope(spec: RotarySpec, numbers: dict[str, float], max_model_len: int) -> torch.Tensor:
    """Each pair has its own divisor, in a short and a long list."""
    long = max_model_len > numbers["original_max_position_embeddings"]
    factors_F = torch.tensor(spec.long_factors if long else spec.short_factors, dtype=torch.float32)
    return 1.0 / (factors_F * _powers(spec.dim, spec.base))


def _longrope_factor(numbers: dict[str, float]) -> float:
    if "attention_factor" in numbers:
        return numbers["attention_factor"]
    factor = numbers["factor"]
    if factor <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(factor) / math.log(numbers["original_max_position_embeddings"]))
