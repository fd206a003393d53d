"""Renders `docs/config.md` from the configuration's own fields.

`python -m drivetrain_server.config_docs > docs/config.md` writes it; `make docs` does that.
"""

from __future__ import annotations

import sys

from drivetrain.config import SECTIONS, EngineConfig, ServerConfig, Setting, docs_of, settings_of

HEADER = """\
# Configuration

<!-- Written by `make docs`; change the docstrings of the fields instead. -->

One file, `drivetrain.toml`, holds everything. It is read from the working directory, or from where `--config` or the
environment variable `DRIVETRAIN_CONFIG` points. No field is required but the model, and none names a vendor.

Every field is also an environment variable and a command-line flag, by one rule: `max_step_tokens` under `[limits]` is
`DRIVETRAIN_MAX_STEP_TOKENS` and `--max-step-tokens`. Flags win over the environment, which wins over the file, which
wins over the default. A key, variable or flag that is not listed here is an error.

- **Sizes** are bytes or have a unit: `65536`, `"64KiB"`, `"1.5GB"`. **Shares** are `"70%"` or `0.7`.
- `"auto"` and `"none"` in the column of defaults can be written in the file, too.
- In flags and variables, **lists** are separated by commas and **tables** are JSON objects. Flags for true and false
  are `--prefix-cache` and `--no-prefix-cache`; variables take `true`, `false`, `1`, `0`, `yes`, `no`, `on`, `off`.
- An empty environment variable counts as not set.

```toml
model = "SmolLM2-135M-Instruct"

[limits]
max_num_seqs = 64
kv_memory = "70%"

[server]
port = 8000
api_keys_file = "/run/secrets/drivetrain-keys"
sampling_defaults = { temperature = 0.7 }

[backend_options.cpu]   # only the backend of this name reads it
```
"""


def render() -> str:
    """The whole page, as Markdown."""
    fields = [
        (setting, docs_of(schema)[setting.name])
        for schema in (EngineConfig, ServerConfig)
        for setting in settings_of(schema)
    ]
    parts = [HEADER]
    for section, purpose in SECTIONS.items():
        title = f"## [{section}]" if section else "## Top of the file"
        parts.append(f"{title}\n{purpose}\n\n| field | value | default | what it is for |\n|---|---|---|---|")
        parts[-1] += "".join(_row(setting, doc) for setting, doc in fields if setting.section == section) + "\n"
    return "\n".join(parts)


def _row(setting: Setting, doc: str) -> str:
    default = "" if setting.default in ("", {}) else setting.spell(setting.default)
    bare = setting.kind in ("flag", "count", "number", "list") and setting.default is not None
    shown = f"`{default}`" if bare else f'`"{default}"`'
    values = setting.expected.partition(" (")[0]
    cells = (f"`{setting.name}`", values, shown if default else "", " ".join(doc.split()))
    return "\n| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    sys.stdout.write(render())
