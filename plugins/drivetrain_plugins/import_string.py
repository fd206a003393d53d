"""Import strings: how a spec names an object without importing it."""

from __future__ import annotations

import importlib
import re

IMPORT_STRING = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def check_import_string(field: str, value: object) -> None:
    """Refuse what is not of the form `module.path:attribute`.

    Raises:
        TypeError: `value` is no string.
        ValueError: `value` has another form.
    """
    if not isinstance(value, str):
        raise TypeError(f"{field}: got {type(value).__name__}, expected a string 'module.path:attribute'")
    if not IMPORT_STRING.fullmatch(value):
        raise ValueError(f"{field}: got {value!r}, expected 'module.path:attribute'")


def import_object(target: str) -> object:
    """Import the module of `target` ("module.path:attribute") and return the attribute.

    Raises:
        ValueError: `target` is not an import string.
        ImportError: the module cannot be imported.
        AttributeError: the module has no such attribute.
    """
    check_import_string("import string", target)
    module_name, _, attributes = target.partition(":")
    found: object = importlib.import_module(module_name)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return found
