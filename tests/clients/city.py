"""What every framework is asked for in a structured answer, and how a program reports what it got."""

from __future__ import annotations

import json
import sys
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

QUESTION = "What is the capital of France?"
MODEL = "served"
MAX_TOKENS = 60


class City(BaseModel):
    """A city and where it lies."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["Berlin", "Paris", "Rome"]
    country: Literal["France", "Germany", "Italy"]


def server_url() -> str:
    """Where the server listens: the program's one argument."""
    return sys.argv[1]


def report(**answers: Any) -> None:
    """Print the answers as JSON, the last line of the program."""
    print(json.dumps(answers))
