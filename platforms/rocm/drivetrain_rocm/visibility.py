"""Which GPUs the environment leaves to this process, by the rules of ROCm's own libraries.

`ROCR_VISIBLE_DEVICES` comes first: numbers or UUIDs ("GPU-<16 hexadecimal digits>") among all GPUs. Of what it leaves,
`HIP_VISIBLE_DEVICES` chooses by number; `CUDA_VISIBLE_DEVICES` is another name of it. A list ends at its first entry
that names nothing. The libraries do not agree on what two different lists under the two names mean, so that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ROCR = "ROCR_VISIBLE_DEVICES"
HIP = "HIP_VISIBLE_DEVICES"
CUDA = "CUDA_VISIBLE_DEVICES"
ORDINAL = "GPU_DEVICE_ORDINAL"


class Contradiction(ValueError):
    """Two variables name different GPUs; the message says which, and what to do."""


def visible_gpus(environment: Mapping[str, str], uuids: Sequence[str]) -> list[int]:
    """Indices of the GPUs that this process sees, in the order in which it counts them.

    Args:
        uuids: of all GPUs, in the driver's order.

    Raises:
        Contradiction: the environment names two different lists.
    """
    found = list(range(len(uuids)))
    if ROCR in environment:
        found = _chosen(environment[ROCR], found, uuids)
    name = _second_list(environment)
    if name is not None:
        entries = _entries(environment[name])
        if ROCR in environment and len(entries) > len(found) and all(entry.isdecimal() for entry in entries):
            raise Contradiction(
                f"{name}={environment[name]!r} names {len(entries)} GPUs, but {ROCR}={environment[ROCR]!r} leaves "
                f"{len(found)}; {name} counts from 0 among those that {ROCR} leaves"
            )
        found = _chosen(environment[name], found, uuids)
    return found


def hiding_variable(environment: Mapping[str, str]) -> str | None:
    """The variable by which the user says that this process gets no GPU at all."""
    for name in (ROCR, HIP, CUDA, ORDINAL):
        entries = _entries(environment[name]) if name in environment else ["0"]
        if not entries or entries[0].startswith("-"):
            return name
    return None


def naming_variable(environment: Mapping[str, str]) -> str | None:
    """A variable that chooses among the GPUs, if one is set."""
    return next((name for name in (ROCR, HIP, CUDA, ORDINAL) if name in environment), None)


def _second_list(environment: Mapping[str, str]) -> str | None:
    """The variable that chooses among what `ROCR_VISIBLE_DEVICES` leaves."""
    named = [name for name in (HIP, CUDA, ORDINAL) if name in environment]
    for name in named[1:]:
        if _entries(environment[name]) != _entries(environment[named[0]]):
            raise Contradiction(
                f"{named[0]}={environment[named[0]]!r} and {name}={environment[name]!r} name different GPUs; "
                f"unset {name}, or set both alike"
            )
    return named[0] if named else None


def _chosen(value: str, among: Sequence[int], uuids: Sequence[str]) -> list[int]:
    chosen: list[int] = []
    for entry in _entries(value):
        if entry.isdecimal() and int(entry) < len(among):
            index = among[int(entry)]
        else:
            index = next((index for index in among if uuids[index].lower() == entry.lower()), -1)
        if index < 0 or index in chosen:
            break
        chosen.append(index)
    return chosen


def _entries(value: str) -> list[str]:
    return [entry.strip() for entry in value.split(",")] if value.strip() else []
