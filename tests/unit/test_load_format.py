from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from drivetrain.assembly import OpenedModel, open_model_weights
from drivetrain.config import EngineConfig
from drivetrain.errors import ConfigError
from fakes.tiny_engine import tiny_spec

FOLDER = OpenedModel(path=Path("folder"), name="m", config={}, spec=tiny_spec(), end_ids=frozenset())


@pytest.mark.parametrize(("asked", "path", "found"), [("gguf", "m", "safetensors"), ("safetensors", "m.gguf", "gguf")])
def test_other_files_than_load_format_says_are_refused(asked: str, path: str, found: str) -> None:
    config = EngineConfig(model="m", load_format=asked)
    with pytest.raises(ConfigError, match=rf"load_format: got {asked}, but {path} holds {found}"):
        open_model_weights(config, replace(FOLDER, path=Path(path)), "float32")
