"""Tools for models whose chat template knows none: told in words, with calls and results as ordinary turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

from drivetrain.dialects.forms import CallForm
from drivetrain.dialects.spelling import written_calls

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
Message = Mapping[str, Json]


def tools_in_words(offers: Sequence[Mapping[str, Json]], form: CallForm, *, required: bool, parallel: bool) -> str:
    """What a model is told about the tools.

    Args:
        offers: OpenAI's tool objects.
    """
    functions = "\n".join(json.dumps(offer["function"], ensure_ascii=False) for offer in offers)
    example = written_calls(form, [("NAME", {"ARGUMENT": "VALUE"})])
    when = "Answer with a call of a function" if required else "If a function helps, answer with a call of it"
    several = " Several calls may follow each other." if parallel else " Call one function at a time."
    return (
        f"You can call these functions, each described by one line of JSON:\n{functions}\n\n"
        f"{when}, written exactly so, with the real name and arguments:\n{example}\n"
        f"Write nothing after the call: the result comes in the next message.{several}"
    )


def with_words(messages: Sequence[Message], words: str) -> list[Message]:
    """The conversation with the words in its system message."""
    if messages and messages[0].get("role") == "system":
        first = messages[0]
        return [{**first, "content": f"{_text(first.get('content'))}\n\n{words}"}, *messages[1:]]
    return [{"role": "system", "content": words}, *messages]


def without_calls(messages: Sequence[Message], form: CallForm) -> list[Message]:
    """The conversation with calls in the content of the assistant's turns, and results as turns of the user.

    Neighbours with the same role become one message, because many templates demand that roles alternate.
    """
    names: dict[str, str] = {}
    told: list[dict[str, Json]] = []
    for message in messages:
        turn = _told(message, form, names)
        if told and told[-1]["role"] == turn["role"] and turn["role"] != "system":
            told[-1]["content"] = f"{_text(told[-1]['content'])}\n{_text(turn['content'])}"
        else:
            told.append(turn)
    return list(told)


def _told(message: Message, form: CallForm, names: dict[str, str]) -> dict[str, Json]:
    turn = {key: value for key, value in message.items() if key not in ("tool_calls", "tool_call_id")}
    if message.get("role") == "tool":
        call_id = message.get("tool_call_id")
        name = names.get(call_id, "the function") if isinstance(call_id, str) else "the function"
        return {"role": "user", "content": f"Result of {name}:\n{_text(message.get('content'))}"}
    calls: list[tuple[str, Mapping[str, object]]] = []
    listed = message.get("tool_calls")
    for call in listed if isinstance(listed, list) else ():
        match call:
            case {"id": str(id), "function": {"name": str(name), "arguments": str(written)}}:
                names[id] = name
                calls.append((name, _arguments(written)))
            case _:
                pass
    if calls:
        said = _text(message.get("content"))
        turn["content"] = f"{said}\n{written_calls(form, calls)}" if said else written_calls(form, calls)
    return turn


def _arguments(written: str) -> Mapping[str, object]:
    try:
        value: object = json.loads(written)
    except (ValueError, RecursionError):
        value = None
    return cast("dict[str, object]", value) if isinstance(value, dict) else {"arguments": written}


def _text(content: Json) -> str:
    if isinstance(content, list):
        return "\n".join(str(part["text"]) for part in content if isinstance(part, dict) and "text" in part)
    return content if isinstance(content, str) else ""
