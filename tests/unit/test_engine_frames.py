"""Frames between frontends and an engine: every error survives the way."""

from __future__ import annotations

import msgspec
import pytest

from drivetrain import errors
from drivetrain.messages import GenerateRequest
from drivetrain.process.frames import HEADER, FromEngine, Refused, Submit, ToEngine, frame, raised, refusal
from drivetrain.sampling import SamplingParams

HOMES = ("drivetrain.errors", "drivetrain_plugins.errors")


def every_error(root: type[errors.DrivetrainError] = errors.DrivetrainError) -> list[type[errors.DrivetrainError]]:
    """What core and plugins raise; a frontend's own errors never come from an engine."""
    packages = ("drivetrain", "drivetrain_plugins")
    ours = [kind for kind in root.__subclasses__() if kind.__module__.split(".")[0] in packages]
    return [root, *(found for kind in ours for found in every_error(kind))]


def made(kind: type[errors.DrivetrainError]) -> errors.DrivetrainError:
    if issubclass(kind, errors.RequestError):
        return kind("wrong: got 5", param="top_p")
    if issubclass(kind, errors.Overloaded):
        return kind("full", retry_after_s=2.5)
    return kind("it broke")


@pytest.mark.parametrize("kind", sorted(set(every_error()), key=lambda kind: kind.__name__))
def test_a_refusal_arrives_as_the_error_that_it_was(kind: type[errors.DrivetrainError]) -> None:
    error = made(kind)
    encoded = frame(msgspec.msgpack.Encoder(), refusal("r", error))
    (size,) = HEADER.unpack(encoded[: HEADER.size])
    assert size == len(encoded) - HEADER.size
    message = msgspec.msgpack.decode(encoded[HEADER.size :], type=FromEngine)
    assert isinstance(message, Refused)
    assert message.request_id == "r"
    arrived = raised(message)
    assert type(arrived) is kind
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


def test_the_table_of_errors_is_complete() -> None:
    names = {kind.__name__ for kind in every_error()}
    assert {"RequestError", "Overloaded", "Draining", "OutOfMemory", "ModelNotFound", "DeviceLost"} <= names
    assert names == set(errors.__all__), "`raised` finds errors by name"


@pytest.mark.parametrize("kind", ["KeyError", "annotations", "__all__"])
def test_an_exception_that_is_none_of_ours_is_named(kind: str) -> None:
    arrived = raised(Refused(request_id="r", kind=kind, message="'layers'"))
    assert type(arrived) is errors.EngineError
    assert str(arrived) == f"{kind}: 'layers'"


def test_a_request_arrives_with_every_field() -> None:
    request = GenerateRequest(
        request_id="r",
        prompt_ids=[1, 2**31 - 1],
        params=SamplingParams(n=2, seed=-5, stop=("x",), stop_token_ids=(4,), logit_bias={7: -1.5}, bad_words=("y",)),
        bad_word_ids=[[3], [4, 5]],
        priority=-3,
        salt="tenant",
        deadline_s=1.5,
    )
    body = frame(msgspec.msgpack.Encoder(), Submit(request))[HEADER.size :]
    assert msgspec.msgpack.decode(body, type=ToEngine) == Submit(request)
