"""The configuration: precedence, kinds of values, messages, rules that hold for every field."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from drivetrain.config import (
    EngineConfig,
    ServerConfig,
    all_settings,
    docs_of,
    format_size,
    load_config,
    parse_size,
    settings_of,
)
from drivetrain.errors import ConfigError


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "drivetrain.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("file", "env", "flag", "expected", "origin"),
    [
        (None, None, None, 256, None),
        (1, None, None, 1, "limits.max_num_seqs"),
        (1, "2", None, 2, "DRIVETRAIN_MAX_NUM_SEQS"),
        (1, None, "3", 3, "--max-num-seqs"),
        (None, "2", None, 2, "DRIVETRAIN_MAX_NUM_SEQS"),
        (None, "2", "3", 3, "--max-num-seqs"),
        (1, "2", "3", 3, "--max-num-seqs"),
        (1, "", None, 1, "limits.max_num_seqs"),
    ],
)
def test_flags_win_over_environment_over_file_over_default(tmp_path, file, env, flag, expected, origin):
    path = write(tmp_path, "" if file is None else f"[limits]\nmax_num_seqs = {file}\n")
    config = load_config(
        path, env={} if env is None else {"DRIVETRAIN_MAX_NUM_SEQS": env}, flags={"max_num_seqs": flag}
    )
    assert config.engine.max_num_seqs == expected
    got = config.origins.get("max_num_seqs")
    assert got is None if origin is None else got.endswith(origin)


def test_whole_file_is_read(tmp_path):
    path = write(
        tmp_path,
        """
        model = "smollm2"
        dtype = "float32"
        [limits]
        max_step_tokens = 512
        kv_memory = "2GiB"
        [scheduler]
        prefix_cache = false
        overlap = "off"
        [server]
        port = 0
        api_keys = ["one", "two"]
        request_timeout_s = 5
        max_body_bytes = "2MiB"
        sampling_defaults = { temperature = 0.5 }
        [backend_options.cpu]
        threads = 2
        """,
    )
    config = load_config(path)
    assert config.engine == EngineConfig(
        model="smollm2",
        dtype="float32",
        max_step_tokens=512,
        kv_memory=2 * 1024**3,
        prefix_cache=False,
        overlap="off",
        backend_options={"cpu": {"threads": 2}},
    )
    assert config.server.port == 0
    assert config.server.api_keys == ("one", "two")
    assert config.server.request_timeout_s == 5.0
    assert config.server.max_body_bytes == 2 * 1024**2
    assert config.engine.options_of("cpu") == {"threads": 2}
    assert config.engine.options_of("cuda") == {}


def test_file_in_the_working_directory_is_found_and_said(tmp_path):
    write(tmp_path, 'model = "here"')
    config = load_config(directory=tmp_path)
    assert config.engine.model == "here"
    assert config.found
    assert config.path == tmp_path / "drivetrain.toml"


def test_named_file_wins_over_the_one_found(tmp_path):
    write(tmp_path, 'model = "found"')
    other = tmp_path / "other.toml"
    other.write_text('model = "named"')
    by_env = load_config(directory=tmp_path, env={"DRIVETRAIN_CONFIG": str(other)})
    by_path = load_config(other, directory=tmp_path)
    assert by_env.engine.model == by_path.engine.model == "named"
    assert not by_env.found
    assert not by_path.found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[limits]\nmax_step_tokns = 1", "unknown key `limits.max_step_tokns`; did you mean `limits.max_step_tokens`?"),
        ("max_num_seqs = 1", "unknown key `max_num_seqs`; `max_num_seqs` belongs under [limits]"),
        ('[server]\nmodel = "x"', "unknown key `server.model`; `model` belongs at the top of the file"),
        ("[limit]\nmax_num_seqs = 1", "unknown section [limit]; did you mean `limits`?"),
        ("xyzzy = 1", "unknown key `xyzzy`; `drivetrain serve --help` lists every field"),
        ("limits = 3", "limits: got 3, expected a table; write [limits] on a line of its own"),
        ('[limits]\nmax_num_seqs = "12"', 'limits.max_num_seqs: got "12", expected a whole number from 1 to 65536'),
        ("[limits]\nmax_num_seqs = true", "limits.max_num_seqs: got true, expected a whole number from 1 to 65536"),
        ("[limits]\nmax_num_seqs = 0", "limits.max_num_seqs: got 0, expected a whole number from 1 to 65536"),
        ("[limits]\nmax_num_seqs = 1.5", "limits.max_num_seqs: got 1.5, expected a whole number from 1 to 65536"),
        (
            '[limits]\nmax_step_tokens = "big"',
            'limits.max_step_tokens: got "big", expected a whole number, at least 1, or "auto"',
        ),
        ('dtype = "bfloat"', 'dtype: got "bfloat", expected one of auto, bfloat16, float16, float32; did you mean'),
        ("model = 3", "model: got 3, expected text"),
        ("[scheduler]\nprefix_cache = 1", "scheduler.prefix_cache: got 1, expected true or false"),
        ('[limits]\nkv_memory = "4 gigs"', 'limits.kv_memory: got "4 gigs", expected a size of at least 1MiB such as'),
        ("[limits]\nkv_memory = 4", "limits.kv_memory: got 4, expected a size of at least 1MiB such as"),
        ("[limits]\nkv_memory = 1.5", "limits.kv_memory: got 1.5, expected a size of at least 1MiB such as"),
        ("[server]\nport = 65536", "server.port: got 65536, expected a whole number from 0 to 65535"),
        ("[server]\ndrain_s = nan", "server.drain_s: got nan, expected a number from 0 to 3600"),
        ("[server]\ncors_origins = [1]", "server.cors_origins: got [1], expected a list of texts"),
        ("backend_options = 3", "backend_options: got 3, expected a table"),
        ("model = ", "not valid TOML"),
    ],
)
def test_wrong_file_says_place_what_it_holds_and_what_is_expected(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml: cannot read the configuration: No such file"):
        load_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DRIVETRAIN_PORTS", "1", "unknown environment variable DRIVETRAIN_PORTS; did you mean DRIVETRAIN_PORT?"),
        (
            "DRIVETRAIN_API_KEY",
            "k",
            "unknown environment variable DRIVETRAIN_API_KEY; did you mean DRIVETRAIN_API_KEYS",
        ),
        ("DRIVETRAIN_PORT", "http", 'DRIVETRAIN_PORT: got "http", expected a whole number from 0 to 65535'),
        ("DRIVETRAIN_PREFIX_CACHE", "maybe", 'DRIVETRAIN_PREFIX_CACHE: got "maybe", expected true or false'),
        ("DRIVETRAIN_DRAIN_S", "soon", 'DRIVETRAIN_DRAIN_S: got "soon", expected a number from 0 to 3600'),
        ("DRIVETRAIN_BACKEND_OPTIONS", "{", 'DRIVETRAIN_BACKEND_OPTIONS: got "{", expected a table'),
    ],
)
def test_wrong_environment_variable_is_named(name, value, message):
    with pytest.raises(ConfigError) as caught:
        load_config(env={name: value, "PATH": "/bin"})
    assert message in str(caught.value)


def test_unknown_flag_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"unknown flag --max-seqs; did you mean --max-num-seqs\?"):
        load_config(flags={"max_seqs": "1"})


def test_all_problems_are_reported_at_once(tmp_path):
    path = write(tmp_path, "[limits]\nmax_num_seqs = 0\nnumpages = 3\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, env={"DRIVETRAIN_PORT": "x"}, flags={"dtype": "int8"})
    lines = str(caught.value).splitlines()
    assert [line.split(": got")[0].split(": unknown")[0] for line in lines] == [
        f"{path}: limits.max_num_seqs",
        f"{path}",
        "DRIVETRAIN_PORT",
        "--dtype",
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [("70%", 0.7), ("0.25", 0.25), ("4GiB", 4 * 1024**3), ("1.5 MB", 1_500_000), ("2097152", 2097152), ("auto", None)],
)
def test_kv_memory_is_a_size_or_a_share(text, value):
    assert load_config(flags={"kv_memory": text}).engine.kv_memory == pytest.approx(value)
    assert EngineConfig(kv_memory=text).kv_memory == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "GiB", "4XB", "-1GiB", "4 4GiB", "1e9"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(ConfigError, match="expected a size"):
        parse_size(text)


@pytest.mark.parametrize("num_bytes", [1, 1023, 1024, 1536, 4 * 1024**3, 5 * 1024**4])
def test_sizes_read_back(num_bytes):
    assert parse_size(format_size(num_bytes)) == num_bytes


def test_environment_spells_every_kind():
    config = load_config(
        env={
            "DRIVETRAIN_PREFIX_CACHE": "off",
            "DRIVETRAIN_DRAIN_S": "2.5",
            "DRIVETRAIN_CORS_ORIGINS": "https://a.example, https://b.example",
            "DRIVETRAIN_BACKEND_OPTIONS": '{"cpu": {"threads": 2}}',
            "DRIVETRAIN_MAX_HEADER_BYTES": "32KiB",
            "DRIVETRAIN_REQUEST_TIMEOUT_S": "none",
        }
    )
    assert config.engine.prefix_cache is False
    assert config.server.drain_s == 2.5
    assert config.server.cors_origins == ("https://a.example", "https://b.example")
    assert config.engine.options_of("cpu") == {"threads": 2}
    assert config.server.max_header_bytes == 32768
    assert config.server.request_timeout_s is None


@pytest.mark.parametrize("degree", ["tensor_parallel", "pipeline_parallel", "data_parallel"])
def test_more_than_one_device_is_refused_with_the_reason(degree):
    with pytest.raises(ConfigError, match=rf"parallel\.{degree}: got 2, expected 1: this version runs one device"):
        EngineConfig(**{degree: 2})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_pages": 8, "kv_memory": "1GiB"}, "num_pages: got 8 beside limits.kv_memory"),
        (
            {"chunked_prefill": False, "max_step_tokens": 8, "max_model_len": 9},
            r"max_step_tokens: got 8, expected at least limits\.max_model_len \(9\)",
        ),
        ({"backend_options": {"cpu": 3}}, r"backend_options\.cpu: got 3, expected a table"),
        ({"max_num_seqs": "3"}, 'limits.max_num_seqs: got "3", expected a whole number'),
    ],
)
def test_contradictions_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**fields)


def test_other_hosts_need_a_key():
    with pytest.raises(
        ConfigError, match=r'server\.host: got "0\.0\.0\.0", which other machines reach, and no API key'
    ):
        ServerConfig(host="0.0.0.0")
    assert ServerConfig(host="0.0.0.0", api_keys=("secret",)).host == "0.0.0.0"
    assert ServerConfig(host="::1").host == "::1"
    assert ServerConfig(host="localhost").host == "localhost"


def test_keys_come_from_a_file_too_and_are_never_shown(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# staff\nsecret-1\n\n  secret-2  \n")
    config = ServerConfig(api_keys=("secret-0", "secret-1"), api_keys_file=str(path))
    assert config.api_keys == ("secret-0", "secret-1", "secret-2")
    assert "secret" not in repr(config)
    assert dataclasses.replace(config).api_keys == config.api_keys


@pytest.mark.parametrize(("content", "message"), [("# none\n", "holds no key"), (None, "cannot read")])
def test_key_file_without_keys_never_opens_the_server(tmp_path, content, message):
    path = tmp_path / "keys"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        ServerConfig(api_keys_file=str(path))


def test_wrong_keys_are_refused_without_showing_them(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, '[server]\napi_keys = "hunter2"'))
    assert "server.api_keys: got a str, expected a list of texts" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        ServerConfig(api_keys=("hunter 2",))
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"temprature": 1}, "unknown sampling parameter `temprature`; did you mean `temperature`?"),
        ({"top_p": 2}, "top_p: expected a number above 0 to 1, got 2"),
    ],
)
def test_sampling_defaults_are_checked_at_start(defaults, message):
    with pytest.raises(ConfigError) as caught:
        ServerConfig(sampling_defaults=defaults)
    assert message in str(caught.value)


def test_names_are_unique_over_all_sections_so_that_each_has_one_flag():
    names = [setting.name for schema in (EngineConfig, ServerConfig) for setting in settings_of(schema)]
    assert len(names) == len(set(names)) == len(all_settings())
    flags = {setting.flag for setting in all_settings().values()}
    assert not {f"--no-{setting.flag[2:]}" for setting in all_settings().values()} & flags


def test_flag_variable_and_key_follow_from_the_name():
    setting = all_settings()["max_step_tokens"]
    assert (setting.flag, setting.env, setting.key) == (
        "--max-step-tokens",
        "DRIVETRAIN_MAX_STEP_TOKENS",
        "limits.max_step_tokens",
    )


@pytest.mark.parametrize("schema", [EngineConfig, ServerConfig])
def test_every_field_has_a_docstring_and_a_default_that_passes_its_own_check(schema):
    docs = docs_of(schema)
    for setting in settings_of(schema):
        assert docs[setting.name].endswith((".", ".)")), setting.name
        assert setting.read(setting.default, setting.key) == (
            tuple(setting.default) if isinstance(setting.default, list) else setting.default
        )


def test_a_table_may_be_spelt_on_the_command_line_as_in_the_file():
    for text in ("{ temperature = 0.7 }", '{"temperature": 0.7}'):
        config = load_config(flags={"sampling_defaults": text})
        assert config.server.sampling_defaults == {"temperature": 0.7}
    for text in ("temperature = 0.7", "{ temperature = }", "0.7"):
        with pytest.raises(ConfigError, match=r"expected a table such as"):
            load_config(flags={"sampling_defaults": text})


def test_an_unknown_family_comes_with_the_nearest():
    with pytest.raises(ConfigError, match=r'got "hermess", expected auto, none, .*; did you mean "hermes"\?'):
        EngineConfig(tool_parser="hermess")
