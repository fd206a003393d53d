"""The task of a listing child: import one entry point, call its hook, and answer with what it lists or what is wrong.

Runs only in a child of `discovery`. It catches everything that the plugin raises, so that the answer holds a reason.
"""

from __future__ import annotations

import difflib
import importlib
import json
from typing import cast

import pluggy

from drivetrain_plugins.child import describe
from drivetrain_plugins.hooks import PROJECT, BackendHooks
from drivetrain_plugins.import_string import import_object
from drivetrain_plugins.spec import BackendSpec

HOOK = BackendHooks.drivetrain_backends.__name__
MARK = f"{PROJECT}_impl"


def list_backends(argument: str) -> dict[str, object]:
    """Answer `{"specs": [...]}` or `{"failure": ..., "next_step": ...}` for the entry point in `argument` (JSON)."""
    entry_point = json.loads(argument)
    name, target = entry_point["name"], entry_point["target"]
    try:
        plugin = _load(target)
    except BaseException as error:  # SystemExit too: the answer is all that leaves this process
        return _failure(f"importing {target!r} raised {describe(error)}", "repair or uninstall the package")
    if problem := _hook_problem(plugin, target):
        return problem
    try:
        answers = _call_hook(plugin, name)
    except BaseException as error:
        return _failure(f"{HOOK}() raised {describe(error)}", "repair or uninstall the package")
    listed = answers[0] if answers else None  # pluggy leaves out an implementation that returns None
    if problem := _type_problem(listed):
        return problem
    return {"specs": listed}


def _load(target: str) -> object:
    """Import what an entry point names: a module, or an object in one. Extras in brackets say nothing at run time."""
    module_name, _, attribute = target.partition("[")[0].strip().partition(":")
    if attribute:
        return import_object(f"{module_name.strip()}:{attribute.strip()}")
    return importlib.import_module(module_name)


def _call_hook(plugin: object, name: str) -> list[object]:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(BackendHooks)
    manager.register(plugin, name)
    return cast("list[object]", manager.hook.drivetrain_backends())


def _hook_problem(plugin: object, target: str) -> dict[str, object] | None:
    """Why pluggy would not call anything in `plugin`: no hook, one without the mark, or one under another name."""
    marked = [name for name in dir(plugin) if hasattr(getattr(plugin, name, None), MARK)]
    strangers = [name for name in marked if name != HOOK]
    if strangers:
        return _failure(
            f"{target!r} implements {strangers[0]!r}, which is no hook of Drivetrain{_suggestion(strangers[0])}",
            f"rename {strangers[0]} to {HOOK}",
        )
    if HOOK in marked:
        return None
    if hasattr(plugin, HOOK):
        return _failure(
            f"{HOOK} in {target!r} is not marked as a hook",
            "decorate it with @hookimpl from drivetrain_plugins.hooks",
        )
    near = difflib.get_close_matches(HOOK, [name for name in dir(plugin) if callable(getattr(plugin, name, None))], 1)
    if near:
        return _failure(
            f"{target!r} has no hook {HOOK}; it has {near[0]!r}",
            f"rename {near[0]} to {HOOK} and decorate it with @hookimpl from drivetrain_plugins.hooks",
        )
    return _failure(
        f"{target!r} has no hook {HOOK}",
        f"define {HOOK}() -> list[BackendSpec] there and decorate it with @hookimpl from drivetrain_plugins.hooks",
    )


def _type_problem(listed: object) -> dict[str, object] | None:
    expected = "expected list[BackendSpec]"
    if not isinstance(listed, list):
        return _failure(f"{HOOK}() returned {type(listed).__name__}, {expected}", "return a list of BackendSpec")
    for index, item in enumerate(cast("list[object]", listed)):
        if not isinstance(item, BackendSpec):
            return _failure(
                f"{HOOK}() returned a list whose item {index} is {type(item).__name__}, {expected}",
                "return a list of BackendSpec",
            )
    if not listed:
        return _failure(
            f"{HOOK}() returned an empty list, {expected} with at least one",
            "list the backend on every machine; its probe says whether it can run",
        )
    return None


def _suggestion(name: str) -> str:
    return f"; did you mean {HOOK!r}?" if difflib.get_close_matches(name, [HOOK], 1) else ""


def _failure(reason: str, next_step: str) -> dict[str, object]:
    return {"failure": reason, "next_step": next_step}
