"""What a field of the configuration is: its kind, range, flag, environment variable and place in the file."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import textwrap
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal, Union, cast, get_args, get_origin, get_type_hints

from drivetrain.config.values import EXPECTED, UNSET, Kind, MalformedError, coerce, format_size, parse_text
from drivetrain.errors import ConfigError

ENV_PREFIX = "DRIVETRAIN_"
SMALLEST_MEMORY = 1024**2
"""A plain number below it is more likely a share or a slip than a size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One field of the configuration.

    Attributes:
        section: the TOML table it lives in; "" is the top of the file.
        default: as the dataclass stores it.
        optional: None is allowed; it is spelt `unset` ("auto" or "none").
        least, most: inclusive bounds of numbers.
        secret: the value never appears in a message.
    """

    name: str
    section: str
    kind: Kind
    default: object
    choices: tuple[str, ...] = ()
    optional: bool = False
    unset: str = "auto"
    least: float | None = None
    most: float | None = None
    secret: bool = False

    @property
    def key(self) -> str:
        """Where it stands in the file: `limits.max_step_tokens`."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def flag(self) -> str:
        """Its command-line flag: `--max-step-tokens`."""
        return "--" + self.name.replace("_", "-")

    @property
    def env(self) -> str:
        """Its environment variable: `DRIVETRAIN_MAX_STEP_TOKENS`."""
        return ENV_PREFIX + self.name.upper()

    @property
    def expected(self) -> str:
        """What a value must be, in words."""
        words = EXPECTED[self.kind]
        if self.kind == "choice":
            words = f"one of {', '.join(self.choices)}"
        if self.kind == "memory":
            return words + ("" if not self.optional else f', or "{self.unset}"')
        if self.least is not None and self.most is not None:
            words += f" from {self._bound(self.least)} to {self._bound(self.most)}"
        elif self.least is not None:
            words += f", at least {self._bound(self.least)}"
        return words + (f', or "{self.unset}"' if self.optional else "")

    def read_text(self, text: str, where: str) -> object:
        """The value that a flag or environment variable at `where` spells.

        Raises:
            ConfigError: it spells no such value.
        """
        if self.optional and text.strip().lower() in UNSET:
            return None
        try:
            parsed = parse_text(text, self.kind)
        except MalformedError:
            raise self._refuse(text, where) from None
        return self.read(parsed, where)

    def read(self, value: object, where: str) -> object:
        """`value` from TOML or Python as the dataclass stores it.

        Raises:
            ConfigError: it is of the wrong type or out of range.
        """
        if self.optional and (value is None or (isinstance(value, str) and value.lower() in UNSET)):
            return None
        try:
            stored = coerce(value, self.kind)
        except MalformedError:
            raise self._refuse(value, where) from None
        if self.kind == "choice" and stored not in self.choices:
            raise self._refuse(value, where, hint=suggestion(str(stored), self.choices))
        if self.kind in ("count", "number", "size", "memory") and not self._inside(cast("float", stored)):
            raise self._refuse(value, where)
        return stored

    def spell(self, value: object) -> str:
        """`value` as a person would write it in the file."""
        if value is None:
            return self.unset
        if self.secret:
            return "(hidden)" if value else "[]"
        if self.kind == "size" and isinstance(value, int):
            return format_size(value)
        if self.kind == "memory":
            return format_size(value) if isinstance(value, int) else f"{cast('float', value):.0%}"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, tuple):
            return "[" + ", ".join(f'"{part}"' for part in cast("tuple[object, ...]", value)) + "]"
        return f"{value:g}" if isinstance(value, float) else str(value)

    def _bound(self, bound: float) -> str:
        return format_size(int(bound)) if self.kind == "size" else str(bound)

    def _inside(self, number: float) -> bool:
        if self.kind == "memory":
            return number >= SMALLEST_MEMORY if isinstance(number, int) else 0.0 < number <= 1.0
        return (self.least is None or number >= self.least) and (self.most is None or number <= self.most)

    def _refuse(self, value: object, where: str, hint: str = "") -> ConfigError:
        if self.secret:
            got = f"a {type(value).__name__}"
        elif isinstance(value, str):
            got = f'"{value}"'
        elif isinstance(value, bool):
            got = str(value).lower()
        else:
            got = repr(value)
        return ConfigError(f"{where}: got {got}, expected {self.expected}{hint}")


@cache
def settings_of(schema: type) -> tuple[Setting, ...]:
    """The settings of a configuration dataclass, in the order it declares them."""
    hints = get_type_hints(schema)
    return tuple(_setting(field, hints[field.name]) for field in dataclasses.fields(schema))


@cache
def docs_of(schema: type) -> Mapping[str, str]:
    """Field name to its docstring: the text that stands right under the field in the source."""
    body = cast("ast.ClassDef", ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0]).body
    docs: dict[str, str] = {}
    for statement, following in pairwise(body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = inspect.cleandoc(text)
            case _:
                pass
    return docs


def suggestion(word: str, known: Iterable[str], *, quote: str = '"') -> str:
    """`; did you mean "x"?` for the nearest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {quote}{near[0]}{quote}?" if near else ""


def _setting(field: dataclasses.Field[object], hint: object) -> Setting:
    metadata = cast("Mapping[str, object]", field.metadata)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = tuple(part for part in parts if part is not type(None))
    choices = cast("tuple[str, ...]", get_args(kinds[0])) if get_origin(kinds[0]) is Literal else ()
    return Setting(
        name=field.name,
        section=str(metadata["section"]),
        kind=_kind(field.name, kinds),
        default=default,
        choices=choices,
        optional=len(kinds) < len(parts),
        unset=str(metadata.get("unset", "auto")),
        least=cast("float | None", metadata.get("least")),
        most=cast("float | None", metadata.get("most")),
        secret=not field.repr,
    )


def _kind(name: str, kinds: tuple[object, ...]) -> Kind:
    if set(kinds) == {int, float}:
        return "memory"
    hint = kinds[0]
    if get_origin(hint) is Literal:
        return "choice"
    if get_origin(hint) is tuple:
        return "list"
    if get_origin(hint) is Mapping:
        return "table"
    if hint is int and name.endswith("_bytes"):
        return "size"
    simple: dict[object, Kind] = {bool: "flag", int: "count", float: "number", str: "text"}
    return simple[hint]
