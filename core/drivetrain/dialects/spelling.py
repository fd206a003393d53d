"""How a family writes calls, piece by piece: for grammars, and for prompts of models whose templates know no tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from drivetrain.dialects.forms import CallForm, HeaderForm, JsonForm, PythonForm, TaggedForm


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrapping:
    """Text around something, and between two of it. `opening` is the marker, `inner` what follows it."""

    opening: str = ""
    inner: str = ""
    between: str = ""
    end: str = ""


def wrapping(form: CallForm) -> tuple[Wrapping, Wrapping]:
    """(text around all calls, text around each call)."""
    opening = (form.opens or ("",))[0]
    close = (form.closes or ("",))[0]
    match form:
        case HeaderForm():
            begin, end = form.section
            each = Wrapping(opening=opening, end=form.trail + close)
            return (Wrapping(opening=begin, end=end), each) if begin else (Wrapping(), each)
        case TaggedForm() if not close:
            return Wrapping(between="\n"), Wrapping(opening=opening)
        case TaggedForm():
            return Wrapping(opening=opening, inner="\n", between="\n", end="\n" + close), Wrapping()
        case JsonForm() if form.array:
            return Wrapping(
                opening=opening or (form.bare or ("",))[0], inner="[", between=", ", end="]" + close
            ), Wrapping()
        case JsonForm() if not opening:
            return Wrapping(between="; "), Wrapping()
        case JsonForm():
            line = "\n" if close else ""
            return Wrapping(between="\n"), Wrapping(opening=opening, inner=line, end=line + close)
        case PythonForm() if form.bracketed:
            return Wrapping(opening=opening, inner="[", between=", ", end="]" + close), Wrapping()
        case PythonForm():
            return Wrapping(opening=opening, inner="\n", between="\n", end="\n" + close), Wrapping()


def tag_lines(form: TaggedForm, name: str) -> tuple[str, str]:
    """(text before the arguments of a call between tags, text behind them); each argument has a line of its own."""
    name_end = form.name_ends[0]
    return form.function + name + name_end + ("" if name_end == "\n" else "\n"), form.function_end


def written_call(form: CallForm, name: str, arguments: Mapping[str, object], number: int = 0) -> str:
    """One call as the family writes it, without what stands around all calls."""
    each = wrapping(form)[1]
    return each.opening + each.inner + _body(form, name, arguments, number) + each.end


def written_calls(form: CallForm, calls: list[tuple[str, Mapping[str, object]]]) -> str:
    """Several calls as the family writes them."""
    around = wrapping(form)[0]
    bodies = [written_call(form, name, arguments, number) for number, (name, arguments) in enumerate(calls)]
    return around.opening + around.inner + around.between.join(bodies) + around.end


def _body(form: CallForm, name: str, arguments: Mapping[str, object], number: int) -> str:
    written = json.dumps(arguments, ensure_ascii=False)
    match form:
        case JsonForm():
            return f'{{"{form.name_keys[0]}": {json.dumps(name)}, "{form.argument_keys[0]}": {written}}}'
        case HeaderForm():
            return form.spelt.replace("%s", name).replace("%d", str(number)) + written
        case TaggedForm():
            head, tail = tag_lines(form, name)
            return head + "".join(_tag_line(form, key, value) for key, value in arguments.items()) + tail
        case PythonForm():
            return f"{name}({', '.join(f'{key}={_python(value)}' for key, value in arguments.items())})"


def _tag_line(form: TaggedForm, key: str, value: object) -> str:
    textual = isinstance(value, str)
    key_end = form.key_ends[0] if textual or len(form.key_ends) == 1 else form.key_ends[1]
    line = "\n" if form.newlines else ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    between = "\n" if form.value else ""
    return f"{form.key}{key}{key_end}{between}{form.value}{line}{text}{line}{form.value_end}\n"


def _python(value: object) -> str:
    """A literal of Python; strings as JSON writes them, which Python reads too."""
    match value:
        case bool() | None:
            return str(value)
        case list():
            return f"[{', '.join(map(_python, cast('list[object]', value)))}]"
        case dict():
            items = cast("dict[str, object]", value).items()
            return f"{{{', '.join(f'{json.dumps(key)}: {_python(each)}' for key, each in items)}}}"
        case _:
            return json.dumps(value, ensure_ascii=False)
