"""Memory in use on each GPU by NVML, which makes no context and sees what other processes take."""

# NVML's bindings have no types.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingImports=false, reportMissingTypeStubs=false, reportMissingModuleSource=false

from __future__ import annotations

from typing import NamedTuple


class MemoryInUse(NamedTuple):
    """Bytes of one GPU."""

    used: int
    free: int


def memory_in_use() -> dict[str, MemoryInUse]:
    """Memory of every GPU by its UUID; nothing where nvidia-ml-py is not installed or NVML does not answer."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return {}
    try:
        return {
            str(pynvml.nvmlDeviceGetUUID(handle)): _memory(pynvml, handle)
            for handle in map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        }
    except pynvml.NVMLError:
        return {}
    finally:
        pynvml.nvmlShutdown()


def used_before_opening(uuid: str) -> int:
    """Bytes that others use on a device, by NVML; to be asked before this process makes a context there.

    0 where NVML cannot say: then others' memory is counted with this process's own, which errs on the safe side.
    """
    found = memory_in_use().get(uuid)
    return found.used if found else 0


def _memory(pynvml: object, handle: object) -> MemoryInUse:
    # The second version leaves out what the driver keeps for itself, as CUDA does.
    found = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)  # pyright: ignore[reportAttributeAccessIssue]
    return MemoryInUse(used=int(found.used), free=int(found.free))
