"""Write the Dockerfile of each platform from the one template: `python deploy/docker/render.py`."""

from __future__ import annotations

import tomllib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

FOLDER = Path(__file__).parent


def dockerfiles() -> dict[str, str]:
    """File name to text, for every platform."""
    templates = Environment(
        loader=FileSystemLoader(FOLDER),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    template = templates.get_template("Dockerfile.jinja")
    made: dict[str, str] = {}
    for name, platform in tomllib.loads((FOLDER / "platforms.toml").read_text(encoding="utf-8")).items():
        extras = f"[{platform['extra']}]" if platform["extra"] else ""
        made[f"Dockerfile.{name}"] = template.render(platform, name=name, extras=extras)
    return made


if __name__ == "__main__":
    for file, text in dockerfiles().items():
        (FOLDER / file).write_text(text, encoding="utf-8")
