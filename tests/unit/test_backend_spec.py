"""A spec that says nonsense is refused when it is built, with the field named."""

from __future__ import annotations

from typing import Any

import pytest

from drivetrain_plugins.import_string import import_object
from drivetrain_plugins.spec import BackendSpec

SOUND: dict[str, Any] = {
    "name": "acme",
    "contract": (1, 2),
    "priority": 100,
    "probe": "acme.probe:probe",
    "backend": "acme.backend:Backend",
    "description": "Acme accelerators",
}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "Acme", "name: got 'Acme', expected a lowercase letter, then letters, digits, '-' or '_'; not 'auto'"),
        ("name", "auto", "name: got 'auto', expected a lowercase letter, then letters, digits, '-' or '_'; not 'auto'"),
        ("name", 3, "name: got 3, expected str"),
        ("priority", "high", "priority: got 'high', expected int"),
        ("priority", True, "priority: got True, expected int"),
        ("contract", (2, 1), "contract: got (2, 1), expected (oldest, newest), as in (1, 1)"),
        ("contract", (0, 1), "contract: got (0, 1), expected (oldest, newest), as in (1, 1)"),
        ("contract", 1, "contract: got 1, expected (oldest, newest), as in (1, 1)"),
        ("probe", "acme.probe", "probe: got 'acme.probe', expected 'module.path:attribute'"),
        ("backend", None, "backend: got NoneType, expected a string 'module.path:attribute'"),
        ("options", "acme options:Schema", "options: got 'acme options:Schema', expected 'module.path:attribute'"),
        ("early", "acme", "early: got 'acme', expected 'module.path:attribute'"),
        (
            "also_called",
            "npu",
            "also_called: got 'npu', expected a tuple of words in lowercase, as in ('acme', 'acmecorp')",
        ),
        (
            "also_called",
            ("Acme",),
            "also_called: got ('Acme',), expected a tuple of words in lowercase, as in ('acme', 'acmecorp')",
        ),
    ],
)
def test_a_field_that_cannot_be_right_is_named(field: str, value: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        BackendSpec(**{**SOUND, field: value})
    assert str(caught.value) == message


def test_the_contract_range_includes_both_ends() -> None:
    spec = BackendSpec(**SOUND)
    assert [spec.speaks(version) for version in (0, 1, 2, 3)] == [False, True, True, False]


def test_an_import_string_reaches_nested_attributes() -> None:
    import collections

    assert import_object("collections:OrderedDict.fromkeys") == collections.OrderedDict.fromkeys
