"""The conformance suite under pytest. A vendor's whole test file:

from drivetrain_plugins.conformance.suite import BackendConformance

class TestAcme(BackendConformance):
    backend = "drivetrain_acme.backend:AcmeBackend"
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar

import pytest

from drivetrain_plugins.conformance.catalogue import checks
from drivetrain_plugins.conformance.check import LEVELS, Check, Level, NotClaimed
from drivetrain_plugins.conformance.run import make_subject, run_check
from drivetrain_plugins.conformance.subject import Subject
from drivetrain_plugins.contract.backend import Backend


class BackendConformance:
    """Subclass with a name that pytest collects, and say which backend.

    Each check is one test, named "level-part.what_holds", so that `-k graphs` or `-k attention` chooses some.
    A check of a capability that the backend does not claim is skipped by the capability's name.
    """

    backend: ClassVar[str | type[Backend]]
    """ "module:class", as in `BackendSpec.backend`, or the class itself."""
    options: ClassVar[Mapping[str, Any]] = {}
    """The `[backend_options.NAME]` table."""
    levels: ClassVar[Collection[Level]] = LEVELS
    """What to prove; leave levels out while a backend grows."""
    world: ClassVar[int | None] = None
    """Ranks of the parallel level, each a process; None takes two where `Capabilities.max_ranks` has room for them."""
    seed: ClassVar[int | None] = 0
    """Of the random inputs; None takes fresh ones in every run. A failure shows the seed that it was found with."""

    @classmethod
    def pytest_generate_tests(cls, metafunc: pytest.Metafunc) -> None:
        """One test a check."""
        if "check" in metafunc.fixturenames:
            metafunc.parametrize("check", checks(cls.levels), ids=str)

    @pytest.fixture(scope="class")
    @classmethod
    def subject(cls) -> Iterator[Subject]:
        """The backend under test; its device is opened once and shared."""
        subject = make_subject(cls.backend, cls.options, seed=cls.seed, world=cls.world)
        yield subject
        subject.close()

    def test_backend_conforms(self, check: Check, subject: Subject) -> None:
        """The backend keeps the part of the contract that `check` names."""
        try:
            run_check(check, subject)
        except NotClaimed as missing:
            pytest.skip(str(missing))
        except Exception as error:
            error.add_note(f"conformance seed {subject.seed}: set `seed = {subject.seed}` to see the same inputs again")
            raise
