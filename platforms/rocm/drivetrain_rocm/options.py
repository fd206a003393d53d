"""The `[backend_options.rocm]` table."""

from __future__ import annotations

import msgspec


class RocmOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user may set for the ROCm backend. Everything else is measured or follows from the GPU.

    Attributes:
        graphs: record steps in HIP graphs. Off, each step launches its kernels one by one: slower, and plainer to
            debug.
        batch_invariant: split attention in the same way whatever else is in the batch; costs speed with few long
            requests. Products still choose their kernel by the number of tokens in the step, so logits may differ in
            their last bits.
    """

    graphs: bool = True
    batch_invariant: bool = False
