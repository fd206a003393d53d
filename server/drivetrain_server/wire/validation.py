"""Strict wire models, and their errors in OpenAI's shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from drivetrain_server.errors import HttpError

Model = TypeVar("Model", bound="WireModel")
SHOWN_CHARS = 60
ROOT_NAME = re.compile(r"[^.\[]+")


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
        first = error.errors(include_url=False)[0]
        param = spell(first["loc"])
        if first["type"] == "missing":
            message = f"{param}: this field is required and was not sent"
        else:
            message = f"{param}: {_reason(first)}; got {shown(first['input'])}"
        code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
        raise HttpError(400, message, param=param, code=code) from None


def refuse(param: str, message: str, *, code: str = "invalid_value") -> HttpError:
    """A 400 for one field."""
    return HttpError(400, f"{param}: {message}", param=param, code=code)


def renamed(error: HttpError, names: Mapping[str, str]) -> HttpError:
    """An error about a field that the client sent under another name.

    Args:
        names: names of ours, up to the first `.` or `[`, to the client's.
    """
    if error.param is None:
        return error
    root = ROOT_NAME.match(error.param)
    own = None if root is None else names.get(root[0])
    if root is None or own is None:
        return error
    param = own + error.param[root.end() :]
    message = error.message
    if message.startswith(error.param):
        message = param + message[len(error.param) :]
    return HttpError(
        error.status,
        message,
        type=error.type,
        param=param,
        code=error.code,
        retry_after_s=error.retry_after_s,
        headers=error.extra_headers,
        close=error.close,
    )


def spell(location: tuple[int | str, ...]) -> str:
    """A place in the body as people write it: `messages[0].content`."""
    path = ""
    for part in location:
        name = part if isinstance(part, int) else part[:SHOWN_CHARS]
        path += f"[{name}]" if isinstance(part, int) else f".{name}" if path else str(name)
    return path or "body"


def shown(value: object) -> str:
    """A value for a message, short whatever it is."""
    if isinstance(value, dict):
        return f"an object with {len(cast('dict[str, object]', value))} fields"
    if isinstance(value, list):
        return f"an array of {len(cast('list[object]', value))}"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}..."


def _reason(error: ErrorDetails) -> str:
    context = error.get("ctx", {})
    if error["type"] == "too_short":
        return f"expected at least {_counted(context['min_length'])}"
    if error["type"] == "too_long":
        return f"expected at most {_counted(context['max_length'])}"
    message = error["msg"].removeprefix("Value error, ")
    return message[:1].lower() + message[1:] if message[:6] == "Input " else message


def _counted(number: int) -> str:
    return "1 item" if number == 1 else f"{number} items"
