"""What errors out of torch and Habana's bridge mean. They are told by their words, as the bridge types none of them."""

from __future__ import annotations

from drivetrain_plugins.errors import BackendError, DeviceLost, OutOfMemory

OUT_OF_MEMORY = ("out of memory", "allocation failed", "no free memory", "synoutofdevicememory", "synoutofhostmemory")
LOST = ("device reset", "device lost", "device is in reset", "syndevicereset", "device acquire failed")


def classify(error: Exception) -> BackendError | None:
    """The contract's meaning of an exception, or None if it is a bug and not the device's state."""
    if isinstance(error, BackendError):
        return None
    text = str(error).lower()
    if any(sign in text for sign in LOST):
        return DeviceLost(f"the card no longer answers: {error}; see `hl-smi` and the kernel log")
    if any(sign in text for sign in OUT_OF_MEMORY):
        return OutOfMemory(f"the card ran out of memory: {error}; lower the KV memory or the step's token budget")
    return None
