"""The first fault of a body, as its client sees it: pydantic's places also hold what a field might have been."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pydantic_core import ErrorDetails

Location = tuple[int | str, ...]
SHOWN_CHARS = 60
_NAME = "[key]"
"""The last part of the place where the name of a field is at fault, not its value."""
_KINDS = {
    "string_type": "a string",
    "list_type": "an array",
    "dict_type": "an object",
    "model_type": "an object",
    "bool_type": "true or false",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
}
"""Type of error to the kind of value that was expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault.

    Attributes:
        param: the field, as people write it: `messages[0].content`.
    """

    param: str
    message: str
    code: str = "invalid_value"


def first_fault(errors: Sequence[ErrorDetails], body: Mapping[str, object]) -> Fault:
    """The fault that a client is told of.

    A field that may be of several kinds brings the errors of each of them. The one that lies within the value is of the
    kind that was meant; where there is none, all kinds are told.

    Args:
        errors: all that pydantic found in `body`.
    """
    place = errors[0]["loc"]
    at = _union(errors, body, place)
    if at is None:
        return _told(errors[:1], place)
    alike = [error for error in errors if error["loc"][:at] == place[:at]]
    meant = max(alike, key=lambda error: len(error["loc"]))
    if len(meant["loc"]) > at + 1:
        return _told([meant], (*meant["loc"][:at], *meant["loc"][at + 1 :]))
    return _told(alike, place[:at])


def spell(location: Location) -> str:
    """A place in the body as people write it: `messages[0].content`."""
    path = ""
    for part in location:
        name = part if isinstance(part, int) else part[:SHOWN_CHARS]
        path += f"[{name}]" if isinstance(part, int) else f".{name}" if path else str(name)
    return path or "body"


def shown(value: object) -> str:
    """A value for a message, short whatever it is."""
    if isinstance(value, dict):
        return f"an object with {_counted(len(cast('dict[str, object]', value)), 'field')}"
    if isinstance(value, list):
        return f"an array of {len(cast('list[object]', value))}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def _union(errors: Sequence[ErrorDetails], body: Mapping[str, object], place: Location) -> int | None:
    """Which part of a place is no part of the body, but says what a field might have been."""
    value: object = body
    for at, part in enumerate(place):
        if isinstance(value, list) and isinstance(part, int):
            value = cast("list[object]", value)[part]
            continue
        beside = [error for error in errors if error["loc"][:at] == place[:at] and len(error["loc"]) > at]
        fields = cast("dict[int | str, object]", value) if isinstance(value, dict) else None
        if fields is None or any(error["loc"][at] not in fields and error["type"] != "missing" for error in beside):
            return None if part == _NAME else at
        value = fields.get(part)
    return None


def _told(alike: Sequence[ErrorDetails], place: Location) -> Fault:
    first = alike[0]
    of_name = place[-2:] == (first["input"], _NAME)
    param = spell(place[:-1] if of_name else place)
    if first["type"] == "missing":
        message = f"{param}: this field is required and was not sent"
        return Fault(param=param, message=message, code="missing_required_parameter")
    reason = f"its name: {_reason(first)}" if of_name else _reasons(alike)
    return Fault(param=param, message=f"{param}: {reason}; got {shown(first['input'])}")


def _reasons(alike: Sequence[ErrorDetails]) -> str:
    """Why a value is none of the kinds that it may be; of one kind alone, what is wrong with it."""
    kinds: list[str] = []
    for error in alike:
        kind = error.get("ctx", {}).get("expected") if error["type"] == "literal_error" else _KINDS.get(error["type"])
        if kind is None:
            return _reason(error)
        if kind not in kinds:
            kinds.append(kind)
    return f"expected {' or '.join(filter(None, (', '.join(kinds[:-1]), kinds[-1])))}"


def _reason(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    unit = "character" if isinstance(error["input"], str) else "item"
    if error["type"] in ("too_short", "string_too_short"):
        return f"expected at least {_counted(context['min_length'], unit)}"
    if error["type"] in ("too_long", "string_too_long"):
        return f"expected at most {_counted(context['max_length'], unit)}"
    if error["type"] == "string_pattern_mismatch":
        return f"expected what matches {context['pattern']}"
    message = error["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:] if message[:6] == "Input " else message


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
