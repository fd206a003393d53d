"""The Gumbel noise of `contract.reference.sampling`: the same hash of (seed, position, token), bit for bit."""

# Relaxed: Triton's language is untyped; what it declares about itself holds for its compiler only.
# pyright: basic, reportArgumentType=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def mix32(x):
    """A bijective hash of uint32. Source: the finalizer of MurmurHash3 (Appleby)."""
    x = x ^ (x >> 16)
    x = x * 0x85EBCA6B
    x = x ^ (x >> 13)
    x = x * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def noise_key(seed_low, seed_high, position):
    """What a row's noise depends on beside the token, from int32 values."""
    key = mix32(mix32(seed_low.to(tl.uint32, bitcast=True)) ^ seed_high.to(tl.uint32, bitcast=True))
    return mix32(key ^ position.to(tl.uint32))


@triton.jit
def log_one_minus(u):
    """log(1 - u) to float32's precision for u from 0 to 1, small u too.

    Source: Kahan's correction. w = 1 - u is rounded, and log(w) / (w - 1) is insensitive to that.
    """
    w = 1.0 - u
    return tl.where(w == 1.0, -u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, 1.0 - w)))


@triton.jit
def uniform(token, key):
    """Numbers above 0 and at most 1 of int32 token ids."""
    hashed = mix32(mix32(token.to(tl.uint32) * 0x9E3779B9 + 1) ^ key)
    # 31 bits, exact near zero: small values make the largest noise, where resolution matters.
    return ((hashed & 0x7FFFFFFF).to(tl.int32, bitcast=True).to(tl.float32) + 0.5) * 4.656612873077393e-10


@triton.jit
def gumbel_noise(token, key):
    """Standard Gumbel noise of int32 token ids."""
    return -tl.log(-log_one_minus(uniform(token, key)))


@triton.jit
def noise_ceiling(token, key):
    """At most a hundred thousandth below the noise of int32 token ids, and not far above it where it is large.

    Source: -log(1 - u) is at least u, so the noise is at most -log(u); and a logarithm to base 2 is at least the
    exponent plus the fraction, which a float's bits are as an integer (Mitchell's approximation).
    """
    bits = uniform(token, key).to(tl.int32, bitcast=True)
    # log(2) * 127, the exponent's bias, and log(2) / 2**23, the fraction's unit.
    return 88.02969193111305 - bits.to(tl.float32) * 8.262958294867817e-08
