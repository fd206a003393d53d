"""Greedy, and draws by temperature with noise that is a pure function of (seed, position, token).

The same function as the contract's reference, so that a seed gives the same answer on every backend.

K rows, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from drivetrain_plugins.contract.batch import SEED_HIGH, SEED_LOW, TEMPERATURE, Float32Array, Int32Array

_UInt32Array = npt.NDArray[np.uint32]


def choose(logits_KV: Float32Array, params_KC: Int32Array, positions_K: Int32Array) -> Int32Array:
    """One token a row.

    Args:
        params_KC: slot parameters in the contract's columns.
        positions_K: position of the token to choose.
    """
    temperature_K = params_KC[:, TEMPERATURE].copy().view(np.float32)
    drawn_K = temperature_K > 0
    if not drawn_K.any():
        return logits_KV.argmax(axis=1).astype(np.int32)
    scaled_KV = logits_KV / np.where(drawn_K, temperature_K, 1.0)[:, None]
    noise_KV = gumbel_noise(params_KC, positions_K, logits_KV.shape[1])
    return (scaled_KV + noise_KV * drawn_K[:, None]).argmax(axis=1).astype(np.int32)


def gumbel_noise(params_KC: Int32Array, positions_K: Int32Array, vocab_size: int) -> Float32Array:
    """Standard Gumbel noise (K, V)."""
    low_K, high_K = (params_KC[:, column].astype(np.uint32) for column in (SEED_LOW, SEED_HIGH))
    key_K = _mix(_mix(_mix(low_K) ^ high_K) ^ positions_K.astype(np.uint32))
    token_V = np.arange(vocab_size, dtype=np.uint32)
    hashed_KV = _mix(_mix(token_V * np.uint32(0x9E3779B9) + np.uint32(1))[None, :] ^ key_K[:, None])
    uniform_KV = ((hashed_KV & np.uint32(0x7FFFFFFF)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-31)
    return -np.log(-np.log1p(-uniform_KV))


def _mix(x: _UInt32Array) -> _UInt32Array:
    """A bijective hash of 32 bits; arithmetic wraps."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
