"""The contract as data: every public name of it with fields, signatures and values, and what of that a change breaks.

`python -m contract_record` (from `tests/`) prints the present contract. `tests/data/contract-N.json` is version N as it
was published; what `breaks` says of it and the present contract must be nothing.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import pkgutil
import sys
import typing
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import drivetrain_plugins.contract as contract

FURTHER_MODULES = ("drivetrain_plugins.errors", "drivetrain_plugins.hooks", "drivetrain_plugins.spec")
PLAIN_VALUES = (int, float, str, frozenset, tuple)
Entry = dict[str, Any]


def describe_contract() -> Entry:
    """Version and modules of the contract that is imported."""
    names = [module.name for module in pkgutil.walk_packages(contract.__path__, f"{contract.__name__}.")]
    modules = {name: _module(importlib.import_module(name)) for name in sorted((*names, *FURTHER_MODULES))}
    return {"version": contract.CONTRACT_VERSION, "modules": modules}


def breaks(old: Entry, new: Entry) -> list[str]:
    """What a package that was written for `old` can no longer rely on, a sentence each."""
    found: list[str] = []
    for module, entries in old["modules"].items():
        present = new["modules"].get(module, {})
        for name, entry in entries.items():
            place = f"{module}.{name}"
            if name not in present:
                found.append(f"{place} is gone")
            elif present[name]["kind"] != entry["kind"]:
                found.append(f"{place} was a {entry['kind']} and is a {present[name]['kind']}")
            else:
                found += _BREAKS[entry["kind"]](place, entry, present[name])
    return found


def _module(module: ModuleType) -> Entry:
    return {name: entry for name, value in sorted(vars(module).items()) if (entry := _entry(module, name, value))}


def _entry(module: ModuleType, name: str, value: object) -> Entry | None:
    if name.startswith("_"):
        return None
    if typing.get_origin(value) is typing.Literal:
        return {"kind": "choice", "values": sorted(typing.get_args(value))}
    if getattr(value, "__module__", None) == module.__name__:
        if isinstance(value, type):
            return _class(value)
        if isinstance(value, FunctionType):
            return {"kind": "function"} | _signature(value)
    if isinstance(value, PLAIN_VALUES) and name.isupper():
        return {"kind": "value", "value": repr(sorted(value) if isinstance(value, frozenset) else value)}
    return None


def _class(made: type) -> Entry:
    entry: Entry = {"kind": "class", "bases": [base.__name__ for base in made.__mro__[1:-1]]}
    if dataclasses.is_dataclass(made):
        entry["fields"] = {field.name: {"type": str(field.type), "default": _default(field)} for field in _fields(made)}
    else:
        entry["attributes"] = {
            name: str(kind) for name, kind in inspect.get_annotations(made).items() if name[0] != "_"
        }
    entry["methods"] = {name: method for name, method in _methods(made) if method}
    return entry


def _fields(made: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(made)  # type: ignore[arg-type]


def _default(field: dataclasses.Field[Any]) -> str | None:
    """How the default reads; None if the field must be given."""
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()  # data of its own may grow; its fields are recorded where it stands
        return f"{type(made).__name__}()" if dataclasses.is_dataclass(made) else repr(made)
    return None if field.default is dataclasses.MISSING else _readable(field.default)


def _methods(made: type) -> Iterator[tuple[str, Entry]]:
    abstract: frozenset[str] = getattr(made, "__abstractmethods__", frozenset())
    generated = {"__init__", "__eq__", "__repr__"} if dataclasses.is_dataclass(made) else set[str]()
    for name, value in sorted(vars(made).items()):
        if name in generated or (name.startswith("_") and name not in ("__init__", "__call__")):
            continue
        if isinstance(value, property) and value.fget is not None:
            yield name, {"property": True} | _signature(value.fget) | {"abstract": name in abstract}
        elif isinstance(value, FunctionType):
            yield name, _signature(value) | {"abstract": name in abstract}


def _signature(function: Any) -> Entry:
    signature = inspect.signature(function)
    parameters = [
        [parameter.name, parameter.kind.name, str(parameter.annotation), _parameter_default(parameter)]
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    return {"parameters": parameters, "returns": str(signature.return_annotation)}


def _parameter_default(parameter: inspect.Parameter) -> str | None:
    return None if parameter.default is inspect.Parameter.empty else _readable(parameter.default)


def _readable(value: object) -> str:
    return repr(sorted(value)) if isinstance(value, frozenset) else repr(value)


def _choice_breaks(place: str, old: Entry, new: Entry) -> list[str]:
    return [f"{place} no longer offers {value!r}" for value in old["values"] if value not in new["values"]]


def _value_breaks(place: str, old: Entry, new: Entry) -> list[str]:
    if place.endswith(".EVERY_SAMPLING_FEATURE") or old == new:  # grows with its choice
        return []
    return [f"{place} was {old['value']} and is {new['value']}"]


def _function_breaks(place: str, old: Entry, new: Entry) -> list[str]:
    """What packages call may gain parameters with defaults."""
    count = len(old["parameters"])
    if new["parameters"][:count] != old["parameters"] or new["returns"] != old["returns"]:
        return [f"{place} has another signature"]
    return [f"{place} must be given {name!r}" for name, _, _, default in new["parameters"][count:] if default is None]


def _class_breaks(place: str, old: Entry, new: Entry) -> list[str]:
    found = [f"{place} is no {base} any more" for base in old["bases"] if base not in new["bases"]]
    found += _field_breaks(place, old.get("fields", {}), new.get("fields", {}))
    for name, kind in old.get("attributes", {}).items():
        if new.get("attributes", {}).get(name) != kind:
            found.append(f"{place}.{name} was {kind} and is {new.get('attributes', {}).get(name, 'gone')}")
    for name, method in old["methods"].items():
        found += _method_breaks(f"{place}.{name}", method, new["methods"].get(name), called="fields" in old)
    added = new["methods"].keys() - old["methods"].keys()
    return found + [f"{place}.{name} is new and abstract" for name in sorted(added) if new["methods"][name]["abstract"]]


def _field_breaks(place: str, old: Entry, new: Entry) -> list[str]:
    found: list[str] = []
    for name, field in old.items():
        if name not in new:
            found.append(f"{place}.{name} is gone")
        elif new[name]["type"] != field["type"]:
            found.append(f"{place}.{name} was {field['type']} and is {new[name]['type']}")
        elif field["default"] is not None and new[name]["default"] is None:
            found.append(f"{place}.{name} must now be given")
        elif new[name]["default"] != field["default"]:
            found.append(f"{place}.{name} was {field['default']} by default and is {new[name]['default']}")
    added = new.keys() - old.keys()
    return found + [
        f"{place}.{name} is new and has no default" for name in sorted(added) if new[name]["default"] is None
    ]


def _method_breaks(place: str, old: Entry, new: Entry | None, *, called: bool) -> list[str]:
    """What packages override keeps its signature to the letter; methods of data are only called."""
    if new is None:
        return [f"{place} is gone"]
    if called:
        return _function_breaks(place, old, new)
    if new["parameters"] != old["parameters"] or new["returns"] != old["returns"]:
        return [f"{place} has another signature"]
    return [f"{place} has become abstract"] if new["abstract"] and not old["abstract"] else []


_BREAKS = {"choice": _choice_breaks, "value": _value_breaks, "function": _function_breaks, "class": _class_breaks}

if __name__ == "__main__":
    json.dump(describe_contract(), sys.stdout, indent=1)
    print()
