"""Find the installed backends by their entry points, without importing one line of theirs into this process.

Discovery reads the entry points itself and gives every one a child process. Importing them here would be a little
faster, but an import cannot be stopped when it hangs, cannot be survived when it crashes, and one careless package
would load its SDK, or torch, into every command. A child costs an interpreter's start (about 40 ms), all at once.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import msgspec

from drivetrain_plugins.contract import CONTRACT_VERSION, OLDEST_CONTRACT_VERSION
from drivetrain_plugins.isolation import ChildCall, ChildOutcome, call_in_children
from drivetrain_plugins.known import known_backends
from drivetrain_plugins.spec import ENTRY_POINT_GROUP, BackendSpec
from drivetrain_plugins.status import BackendState, Origin, Status
from drivetrain_plugins.suggestion import did_you_mean

IN_TREE_DISTRIBUTION = "drivetrain"
BLOCKED_VARIABLE = "DRIVETRAIN_BLOCKED_BACKENDS"
LISTING_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBackend:
    """A backend that can be probed."""

    spec: BackendSpec
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """What is installed.

    Attributes:
        found: backends that can be probed, by name.
        rejected: everything else that declares itself a backend, with the reason.
        warnings: sentences about settings that had no effect.
    """

    found: tuple[FoundBackend, ...]
    rejected: tuple[BackendState, ...]
    warnings: tuple[str, ...] = ()


class _ListingAnswer(msgspec.Struct, forbid_unknown_fields=True):
    specs: list[BackendSpec] = []
    failure: str = ""
    next_step: str = ""


def discover(
    *, blocked: Collection[str] = (), configured: Collection[str] = (), time_limit_s: float = LISTING_LIMIT_S
) -> Discovery:
    """Read the entry points of every distribution on `sys.path` and list their backends. Never raises.

    Args:
        blocked: names of backends, entry points or distributions that must not be used. An entry point blocked by its
            own name or its distribution's is not even imported.
        configured: names of backends that the configuration has options for.
        time_limit_s: how long one entry point may take to import and list.
    """
    origins, rejected = _read_entry_points()
    allowed: list[Origin] = []
    for origin in origins:
        name = next((name for name in (origin.entry_point, origin.distribution) if name in blocked), None)
        if name is None:
            allowed.append(origin)
        else:
            rejected.append(_blocked(origin.entry_point, name, origin))
    calls = [
        ChildCall(
            task="drivetrain_plugins.listing_task:list_backends",
            argument=json.dumps({"name": origin.entry_point, "target": origin.target}),
        )
        for origin in allowed
    ]
    listed: list[FoundBackend] = []
    for origin, outcome in zip(allowed, call_in_children(calls, time_limit_s=time_limit_s), strict=True):
        result = _read_listing(origin, outcome)
        if isinstance(result, BackendState):
            rejected.append(result)
        else:
            listed.extend(FoundBackend(spec=spec, origin=origin) for spec in result)
    accepted, refused = _accept(listed, blocked)
    return Discovery(
        found=tuple(sorted(accepted, key=lambda backend: backend.spec.name)),
        rejected=tuple(sorted(rejected + refused, key=lambda state: (state.name, str(state.origin)))),
        warnings=(*_unused_blocks(blocked, origins, listed), *_unused_options(configured, origins, listed)),
    )


def blocked_by_environment(environ: Mapping[str, str] = os.environ) -> frozenset[str]:
    """Names in `DRIVETRAIN_BLOCKED_BACKENDS`, separated by commas."""
    return frozenset(name.strip() for name in environ.get(BLOCKED_VARIABLE, "").split(",") if name.strip())


def _read_entry_points() -> tuple[list[Origin], list[BackendState]]:
    """Entry points of the group; a distribution that shadows another of the same name wins, as for imports."""
    origins: list[Origin] = []
    rejected: list[BackendState] = []
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        try:
            text = distribution.read_text("entry_points.txt") or ""
        except (OSError, UnicodeError) as error:
            rejected.append(_unreadable(distribution, error))
            continue
        if ENTRY_POINT_GROUP not in text:
            continue
        try:
            name, version = _name_and_version(distribution)
            entry_points = list(_of_group(distribution, name, version))
        except Exception as error:  # metadata is other people's text and its parsers raise what they like
            rejected.append(_unreadable(distribution, error))
            continue
        normalized = re.sub(r"[-_.]+", "-", name).lower()
        if normalized not in seen:
            seen.add(normalized)
            origins.extend(entry_points)
    return origins, rejected


def _of_group(distribution: importlib.metadata.Distribution, name: str, version: str) -> Iterator[Origin]:
    for entry_point in distribution.entry_points:
        if entry_point.group == ENTRY_POINT_GROUP:
            yield Origin(distribution=name, version=version, entry_point=entry_point.name, target=entry_point.value)


def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    metadata = distribution.metadata
    if "Name" not in metadata or "Version" not in metadata:
        raise ValueError("it has no name or no version")
    return metadata["Name"], metadata["Version"]


def _unreadable(distribution: importlib.metadata.Distribution, error: Exception) -> BackendState:
    place = str(getattr(distribution, "_path", distribution))
    return BackendState(
        name=os.path.basename(place).split("-")[0],
        status=Status.BROKEN,
        reason=f"the metadata in {place} cannot be read: {type(error).__name__}: {error}",
        next_step="install the package again",
        origin=Origin(distribution=os.path.basename(place), version="", entry_point="", target=""),
    )


def _read_listing(origin: Origin, outcome: ChildOutcome) -> list[BackendSpec] | BackendState:
    if outcome.answer is None:
        return _broken(
            origin,
            f"the process that imported {origin.target!r} {outcome.failure}",
            "a plugin module must only describe its backend; move slow or native work into the probe or the backend",
            outcome,
        )
    try:
        answer = msgspec.json.decode(outcome.answer, type=_ListingAnswer)
    except (msgspec.DecodeError, ValueError) as error:
        return _broken(origin, f"listing gave a malformed answer: {error}", "repair or uninstall the package", outcome)
    if answer.failure:
        return _broken(origin, answer.failure, answer.next_step, outcome)
    return [spec if spec.version else dataclasses.replace(spec, version=origin.version) for spec in answer.specs]


def _accept(listed: list[FoundBackend], blocked: Collection[str]) -> tuple[list[FoundBackend], list[BackendState]]:
    """Part those that can be probed from what is blocked, speaks another contract or shares a name."""
    candidates: list[FoundBackend] = []
    rejected: list[BackendState] = []
    for backend in listed:
        if backend.spec.name in blocked:
            rejected.append(_blocked(backend.spec.name, backend.spec.name, backend.origin, backend.spec))
        elif not any(map(backend.spec.speaks, range(OLDEST_CONTRACT_VERSION, CONTRACT_VERSION + 1))):
            rejected.append(_incompatible(backend))
        else:
            candidates.append(backend)
    accepted: list[FoundBackend] = []
    for backend in candidates:
        rivals = [other for other in candidates if other.spec.name == backend.spec.name and other is not backend]
        if rivals and not _owns_name(backend, rivals):
            rejected.append(_duplicate(backend, rivals))
        else:
            accepted.append(backend)
    return accepted, rejected


def _owns_name(backend: FoundBackend, rivals: list[FoundBackend]) -> bool:
    """A backend of the tree keeps its name, whatever other packages list; among those none is preferred."""
    return backend.origin.distribution == IN_TREE_DISTRIBUTION and all(
        rival.origin.distribution != IN_TREE_DISTRIBUTION for rival in rivals
    )


def _duplicate(backend: FoundBackend, rivals: list[FoundBackend]) -> BackendState:
    others = ", ".join(f"{rival.origin} (entry point {rival.origin.entry_point!r})" for rival in rivals)
    key = _block_key(backend, rivals)
    return BackendState(
        name=backend.spec.name,
        status=Status.BROKEN,
        reason=f"the name {backend.spec.name!r} is also listed by {others}",
        next_step=f'uninstall one of them, or block one, for example blocked_backends = ["{key}"]',
        origin=backend.origin,
        spec=backend.spec,
    )


def _block_key(backend: FoundBackend, rivals: list[FoundBackend]) -> str:
    """What to write to block this one and none of its rivals."""
    same_distribution = any(rival.origin.distribution == backend.origin.distribution for rival in rivals)
    return backend.origin.entry_point if same_distribution else backend.origin.distribution


def _incompatible(backend: FoundBackend) -> BackendState:
    oldest, newest = backend.spec.contract
    spoken = _versions(OLDEST_CONTRACT_VERSION, CONTRACT_VERSION)
    behind = oldest > CONTRACT_VERSION
    return BackendState(
        name=backend.spec.name,
        status=Status.INCOMPATIBLE,
        reason=f"it speaks {_versions(oldest, newest)} of the backend contract; this Drivetrain speaks {spoken}",
        next_step=f"upgrade {IN_TREE_DISTRIBUTION if behind else backend.origin.distribution}",
        origin=backend.origin,
        spec=backend.spec,
    )


def _versions(oldest: int, newest: int) -> str:
    return f"version {oldest}" if oldest == newest else f"versions {oldest} to {newest}"


def _blocked(name: str, blocked_name: str, origin: Origin, spec: BackendSpec | None = None) -> BackendState:
    return BackendState(
        name=name,
        status=Status.BLOCKED,
        reason=f"{blocked_name!r} is blocked by the configuration",
        next_step=f"take {blocked_name!r} out of blocked_backends (configuration file or {BLOCKED_VARIABLE})",
        origin=origin,
        spec=spec,
    )


def _broken(origin: Origin, reason: str, next_step: str, outcome: ChildOutcome) -> BackendState:
    return BackendState(
        name=origin.entry_point,
        status=Status.BROKEN,
        reason=reason,
        next_step=next_step,
        origin=origin,
        output=outcome.output,
        seconds=outcome.seconds,
    )


def _unused_blocks(blocked: Collection[str], origins: list[Origin], listed: list[FoundBackend]) -> tuple[str, ...]:
    names = _backend_names(origins, listed)
    known = names | {origin.distribution for origin in origins}
    return tuple(
        f"blocked_backends names {name!r}, but no backend, entry point or distribution of that name is installed"
        f"{_nearest(name, known, listed)}"
        for name in sorted(set(blocked) - known)
    )


def _unused_options(configured: Collection[str], origins: list[Origin], listed: list[FoundBackend]) -> tuple[str, ...]:
    names = _backend_names(origins, listed)
    installed = ", ".join(sorted({backend.spec.name for backend in listed})) or "none"
    return tuple(
        f"[backend_options.{name}] has no effect here: no backend of that name is installed (installed are {installed})"
        f"{_nearest(name, names, listed)}"
        for name in sorted(set(configured) - names)
    )


def _backend_names(origins: list[Origin], listed: list[FoundBackend]) -> set[str]:
    """What a configuration may name a backend by; known ones too, as one file may serve machines without them. The
    entry point stands for backends that could not be listed."""
    known = {backend.name for backend in known_backends()}
    return known | {origin.entry_point for origin in origins} | {backend.spec.name for backend in listed}


def _nearest(name: str, known: Collection[str], listed: list[FoundBackend]) -> str:
    return did_you_mean(name, known, {backend.spec.name: backend.spec.also_called for backend in listed})
