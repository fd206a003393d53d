"""One configuration from flags, environment, file and defaults, in this order of precedence."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from drivetrain.config.engine import EngineConfig
from drivetrain.config.schema import ENV_PREFIX, Setting, settings_of, suggestion
from drivetrain.config.server import ServerConfig
from drivetrain.errors import ConfigError

C = TypeVar("C", EngineConfig, ServerConfig)

DEFAULT_FILE = "drivetrain.toml"
FILE_VARIABLE = "DRIVETRAIN_CONFIG"
OTHER_VARIABLES = frozenset({FILE_VARIABLE, "DRIVETRAIN_HOME", "DRIVETRAIN_DEBUG", "DRIVETRAIN_URL"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A complete configuration.

    Attributes:
        path: the file that was read, if any.
        found: the file was found in the working directory and not asked for: tell the user.
        origins: field name to where its value came from; fields that keep their default are absent.
    """

    engine: EngineConfig
    server: ServerConfig
    path: Path | None = None
    found: bool = False
    origins: Mapping[str, str]


def all_settings() -> dict[str, Setting]:
    """Every setting by name. Names are unique over all sections, so that each has one flag and one variable."""
    return {setting.name: setting for schema in (EngineConfig, ServerConfig) for setting in settings_of(schema)}


def load_config(
    path: Path | None = None,
    *,
    env: Mapping[str, str] | None = None,
    flags: Mapping[str, str | bool | None] | None = None,
    directory: Path | None = None,
) -> Config:
    """Read and check the configuration.

    Args:
        path: the file; None takes the one that DRIVETRAIN_CONFIG names, else `drivetrain.toml` in `directory`, else
            none.
        env: environment variables; those that begin with DRIVETRAIN_ and are empty count as not set.
        flags: field name to text as the user wrote it (or a bool); None is not given.
        directory: where `drivetrain.toml` is looked for; None is the working directory.

    Raises:
        ConfigError: with one line for each problem: the place, what it holds, what is expected.
    """
    env = env or {}
    found = False
    if path is None and env.get(FILE_VARIABLE):
        path = Path(env[FILE_VARIABLE])
    elif path is None and (automatic := (directory or Path()) / DEFAULT_FILE).is_file():
        path, found = automatic, True
    values: dict[str, object] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    if path is not None:
        _read_file(path, values, origins, problems)
    _read_env(env, values, origins, problems)
    _read_flags(flags or {}, values, origins, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    engine, server = _build(EngineConfig, values), _build(ServerConfig, values)
    return Config(engine=engine, server=server, path=path, found=found, origins=origins)


def _build(schema: type[C], values: Mapping[str, object]) -> C:
    names = {setting.name for setting in settings_of(schema)}
    return schema(**{name: value for name, value in values.items() if name in names})  # pyright: ignore[reportArgumentType]


def _read_file(path: Path, values: dict[str, object], origins: dict[str, str], problems: list[str]) -> None:
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    settings = {setting.key: setting for setting in all_settings().values()}
    sections = {setting.section for setting in settings.values()} - {""}
    flat: dict[str, object] = {}
    for key, value in document.items():
        if key not in sections:
            flat[key] = value
        elif isinstance(value, dict):
            flat |= {f"{key}.{inner}": item for inner, item in cast("dict[str, object]", value).items()}
        else:
            problems.append(f"{path}: {key}: got {value!r}, expected a table; write [{key}] on a line of its own")
    for key, value in flat.items():
        if key not in settings:
            problems.append(f"{path}: unknown {_unknown_key(key, value, settings, sections)}")
            continue
        try:
            values[settings[key].name] = settings[key].read(value, f"{path}: {key}")
        except ConfigError as error:
            problems.append(str(error))
        origins[settings[key].name] = f"{path}: {key}"


def _unknown_key(key: str, value: object, settings: Mapping[str, Setting], sections: set[str]) -> str:
    section, _, name = key.rpartition(".")
    if not section and isinstance(value, dict):
        return f"section [{key}]" + suggestion(key, sections | {"backend_options"}, quote="`")
    elsewhere = [setting for setting in settings.values() if setting.name == name]
    if elsewhere:
        home = f"under [{elsewhere[0].section}]" if elsewhere[0].section else "at the top of the file"
        return f"key `{key}`; `{name}` belongs {home}"
    near = suggestion(name, [setting.name for setting in settings.values()], quote="")
    for setting in settings.values():
        if near == f"; did you mean {setting.name}?":
            return f"key `{key}`; did you mean `{setting.key}`?"
    return f"key `{key}`; `drivetrain serve --help` lists every field"


def _read_env(env: Mapping[str, str], values: dict[str, object], origins: dict[str, str], problems: list[str]) -> None:
    settings = {setting.env: setting for setting in all_settings().values()}
    for name in sorted(env):
        if not name.startswith(ENV_PREFIX) or name in OTHER_VARIABLES or not env[name]:
            continue
        if name not in settings:
            hint = suggestion(name, [*settings, *OTHER_VARIABLES], quote="") or "; unset it"
            problems.append(f"unknown environment variable {name}{hint}")
            continue
        setting = settings[name]
        try:
            values[setting.name] = setting.read_text(env[name], name)
        except ConfigError as error:
            problems.append(str(error))
        origins[setting.name] = name


def _read_flags(
    flags: Mapping[str, str | bool | None], values: dict[str, object], origins: dict[str, str], problems: list[str]
) -> None:
    settings = all_settings()
    for name, given in flags.items():
        if given is None:
            continue
        if name not in settings:
            flag = "--" + name.replace("_", "-")
            problems.append(f"unknown flag {flag}" + suggestion(flag, [s.flag for s in settings.values()], quote=""))
            continue
        setting = settings[name]
        try:
            read = setting.read if isinstance(given, bool) else setting.read_text
            values[name] = read(given, setting.flag)  # pyright: ignore[reportArgumentType]
        except ConfigError as error:
            problems.append(str(error))
        origins[name] = setting.flag
