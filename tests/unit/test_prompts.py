"""Prompt files of `drivetrain run`."""

from __future__ import annotations

import pytest

from drivetrain.errors import ConfigError
from drivetrain_server.cli.prompts import Prompt, read_prompts


def test_text_files_hold_one_prompt_a_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n  two\n")
    assert read_prompts(path) == [Prompt(text="one"), Prompt(text="  two")]
    assert read_prompts(path)[0].as_messages() == [{"role": "user", "content": "one"}]


def test_json_lines_hold_prompts_or_conversations(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a\\nb", "id": 3}\n{"messages": [{"role": "system", "content": "s"}]}\n')
    first, second = read_prompts(path)
    assert first.text == "a\nb"
    assert second.as_messages() == [{"role": "system", "content": "s"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"got no prompt, expected one a line"),
        ('{"prompt": "ok"}\nnope', r"prompts\.jsonl:2: not JSON"),
        ('{"text": "x"}', r'prompts\.jsonl:1: got \{"text": "x"\}, expected'),
        ('{"messages": []}', r'prompts\.jsonl:1: got \{"messages": \[\]\}, expected'),
        ('{"messages": [{"role": "user"}]}', r"prompts\.jsonl:1: got .*, expected"),
    ],
)
def test_wrong_lines_are_named(tmp_path, content, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_prompts(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.txt: cannot read prompts"):
        read_prompts(tmp_path / "none.txt")
