"""Strict wire models, and their errors in OpenAI's shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from drivetrain_server.errors import HttpError
from drivetrain_server.wire.faults import first_fault

Model = TypeVar("Model", bound="WireModel")
INDEX = re.compile(r"\[\d+\]")
SNAKE_CASE = re.compile(r"(?<!['\"])\b[a-z]+(?:_[a-z]+)+\b")


class WireModel(BaseModel):
    """A JSON object as it comes in: no type is coerced, unknown fields are kept aside and reported."""

    # The docstring of a field is its description in the OpenAPI document, on the reference page and in docs/http.md.
    model_config = ConfigDict(
        strict=True,
        extra="allow",
        allow_inf_nan=False,
        frozen=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @property
    def unknown(self) -> list[str]:
        """Names of the fields that nobody knows, in the order they came."""
        return list(self.model_extra or ())


def parse(model: type[Model], body: Mapping[str, object]) -> Model:
    """`body` as a wire model.

    Raises:
        HttpError: 400 that names the first field at fault, what came and what is allowed.
    """
    try:
        return model.model_validate(body)
    except ValidationError as error:
        fault = first_fault(error.errors(include_url=False), body)
        raise HttpError(400, fault.message, param=fault.param, code=fault.code) from None


def refuse(param: str, message: str, *, code: str = "invalid_value") -> HttpError:
    """A 400 for one field."""
    return HttpError(400, f"{param}: {message}", param=param, code=code)


def renamed(error: HttpError, names: Mapping[str, str]) -> HttpError:
    """An error about a field that the client sent under another name.

    Args:
        names: our fields to the client's, `[]` for an index: `tools[].function` to `tools[]`. The longest one counts.
            In the rest of the message a name of ours that is one word is replaced, too.
    """
    if error.param is None:
        return error
    param = _renamed(error.param, names)
    told = error.message.startswith(error.param)
    rest = error.message[len(error.param) :] if told else error.message
    words = {ours: theirs for ours, theirs in names.items() if SNAKE_CASE.fullmatch(ours)}
    rest = SNAKE_CASE.sub(lambda word: words.get(word[0], word[0]), rest)
    return HttpError(
        error.status,
        param + rest if told else rest,
        type=error.type,
        param=param,
        code=error.code,
        retry_after_s=error.retry_after_s,
        headers=error.extra_headers,
        close=error.close,
    )


def _renamed(param: str, names: Mapping[str, str]) -> str:
    plain = INDEX.sub("[]", param)
    found = [ours for ours in names if plain == ours or plain.startswith((f"{ours}.", f"{ours}["))]
    if not found:
        return param
    ours = max(found, key=len)
    indices = iter(INDEX.findall(param))
    own, rest = names[ours].split("[]"), plain[len(ours) :].split("[]")
    own[-1] += rest[0]
    return "".join([own[0], *(f"{next(indices)}{part}" for part in (*own[1:], *rest[1:]))])
