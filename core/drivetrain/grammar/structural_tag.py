"""Free text with structured parts in it: after a trigger, one of the tags that begin with it must follow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import cast

from drivetrain.errors import RequestError

_MAX_TAGS = 256


def structural_tag_lark(value: object, json_schema_of: Callable[[object], str]) -> str:
    """The Lark grammar of `{"structures": [{"begin", "schema", "end"}, ...], "triggers": [...]}`.

    Args:
        json_schema_of: checks a schema and writes it as text.

    Raises:
        RequestError: it is of another form, or a tag begins with no trigger.
    """
    fields = _object(value, "structural_tag")
    if "format" in fields:
        raise _refusal('structural_tag: "format" is not supported; send structures and triggers')
    triggers = [_text(each, f"triggers[{at}]") for at, each in enumerate(_list(fields.get("triggers"), "triggers"))]
    tags: dict[str, list[str]] = {trigger: [] for trigger in triggers}
    for at, each in enumerate(_list(fields.get("structures"), "structures")):
        tag = _object(each, f"structures[{at}]")
        begin = _text(tag.get("begin"), f"structures[{at}].begin")
        end = _text(tag.get("end"), f"structures[{at}].end", may_be_empty=True)
        trigger = next((trigger for trigger in triggers if begin.startswith(trigger)), None)
        if trigger is None:
            raise _refusal(f"structures[{at}].begin: {begin[:60]!r} begins with none of the triggers")
        parts = (_literal(begin[len(trigger) :]), f"%json {json_schema_of(tag.get('schema', {}))}", _literal(end))
        tags[trigger].append(" ".join(part for part in parts if part))
    used = {trigger: bodies for trigger, bodies in tags.items() if bodies}
    names = " | ".join(f"tag_{at}" for at in range(len(used)))
    lines = [f"start: ({names})* rest", "rest: TEXT", r"TEXT: /(.|\n)*/"]
    for at, (trigger, bodies) in enumerate(used.items()):
        lines.append(f"trigger_{at}[lazy]: TEXT {_literal(trigger)}")
        lines.append(f"tag_{at}: trigger_{at} ({' | '.join(bodies)})")
    return "\n".join(lines)


def _literal(text: str) -> str:
    """A string of Lark; nothing for an empty one."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def _object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _refusal(f"{where}: expected an object")
    return cast("dict[str, object]", value)


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list) or not 1 <= len(cast("list[object]", value)) <= _MAX_TAGS:
        raise _refusal(f"{where}: expected a list of 1 to {_MAX_TAGS}")
    return cast("list[object]", value)


def _text(value: object, where: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or may_be_empty):
        raise _refusal(f"{where}: expected {'a' if may_be_empty else 'a non-empty'} string")
    return value


def _refusal(reason: str) -> RequestError:
    return RequestError(f"grammar: {reason}", param="grammar")
