from __future__ import annotations

import pytest

from drivetrain import errors as core
from drivetrain.errors import DrivetrainError
from drivetrain_plugins import errors as plugins
from drivetrain_server.errors import KINDS, HttpError, http_error


def _tree(root: type[DrivetrainError]) -> set[type[DrivetrainError]]:
    return {root}.union(*(_tree(child) for child in root.__subclasses__()))


def test_every_error_of_the_tree_has_an_answer() -> None:
    ours = {kind for kind in _tree(DrivetrainError) if kind.__module__ in (core.__name__, plugins.__name__)}
    assert KINDS.keys() == ours


def test_no_error_of_the_tree_is_a_500() -> None:
    assert {kind.status for kind in KINDS.values()} == {400, 404, 429, 503}


def test_request_errors_keep_their_field() -> None:
    answer = http_error(core.PromptTooLong("too long", param="prompt"))
    assert (answer.status, answer.param, answer.code) == (400, "prompt", "context_length_exceeded")


def test_class_of_a_plugin_is_answered_like_its_ancestor() -> None:
    class AcmeOutOfMemory(core.OutOfMemory):
        pass

    assert http_error(AcmeOutOfMemory("full")).code == "out_of_memory"


@pytest.mark.parametrize(("asked", "sent"), [(0.0, b"1"), (0.2, b"1"), (59.1, b"60"), (1e9, b"120")])
def test_retry_after_is_whole_seconds_up_to_two_minutes(asked: float, sent: bytes) -> None:
    assert http_error(core.Overloaded("full", retry_after_s=asked)).headers() == [(b"retry-after", sent)]


def test_body_has_openai_shape() -> None:
    assert HttpError(400, "no", param="n", code="c").body() == (
        b'{"error":{"message":"no","type":"invalid_request_error","param":"n","code":"c"}}'
    )
