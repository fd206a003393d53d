"""The backend asked for or the best ready one is chosen; everything else is an error that names the way out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from drivetrain_plugins.errors import BackendNotReady, BackendTie, HardwareIdle, NoBackendReady, UnknownBackend
from drivetrain_plugins.report import report_on
from drivetrain_plugins.selection import select_backend
from drivetrain_plugins.spec import BackendSpec, DeviceInfo
from drivetrain_plugins.status import BackendState, Origin, Status
from drivetrain_plugins.survey import Survey


def state(
    name: str, status: Status, priority: int = 50, *, reason: str = "", next_step: str = "", distribution: str = ""
) -> BackendState:
    spec = BackendSpec(
        name=name, contract=(1, 1), priority=priority, probe="a:b", backend="a:c", description="", version="1"
    )
    origin = Origin(distribution=distribution or name, version="1.2", entry_point=name, target=f"{name}_plugin")
    return BackendState(name=name, status=status, reason=reason, next_step=next_step, origin=origin, spec=spec)


CPU = state("cpu", Status.READY, 0, distribution="drivetrain")
ACME = state("acme", Status.READY, 100)
NO_DRIVER = state("bolt", Status.UNAVAILABLE, 200, reason="no driver is loaded", next_step="load bolt.ko")
ALSO_CALLED = ((ACME, ("acmecorp", "npu")), (NO_DRIVER, ("npu",)))
CRASHED = state("volt", Status.BROKEN, 300, reason="its probe was killed by SIGSEGV")


def test_the_ready_backend_of_highest_priority_is_chosen() -> None:
    assert select_backend(Survey(states=(CRASHED, NO_DRIVER, CPU, ACME))) is ACME


def test_the_backend_asked_for_is_chosen_whatever_its_priority() -> None:
    assert select_backend(Survey(states=(ACME, CPU)), "cpu") is CPU


def test_one_that_was_asked_for_and_is_not_ready_is_fatal_and_never_replaced() -> None:
    with pytest.raises(BackendNotReady) as caught:
        select_backend(Survey(states=(NO_DRIVER, ACME, CPU)), "bolt")
    assert str(caught.value) == (
        "The backend 'bolt' was asked for and cannot serve here. "
        "It is unavailable [bolt 1.2]: no driver is loaded. Next: load bolt.ko. Ready: acme, cpu."
    )


def test_one_that_is_not_installed_says_how_to_install_it() -> None:
    absent = BackendState(
        name="volt", status=Status.UNAVAILABLE, reason="not installed", next_step="pip install 'drivetrain[volt]'"
    )
    with pytest.raises(BackendNotReady) as caught:
        select_backend(Survey(states=(absent,)), "volt")
    assert str(caught.value) == (
        "The backend 'volt' was asked for and cannot serve here. "
        "It is unavailable: not installed. Next: pip install 'drivetrain[volt]'. No backend is ready."
    )


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("acmecorp", "; did you mean 'acme'?"),
        ("AcmeCorp", "; did you mean 'acme'?"),
        ("npu", "; did you mean 'acme' or 'bolt'?"),
        ("toaster", "."),
    ],
)
def test_words_that_people_know_a_backend_by_lead_to_its_name(word: str, hint: str) -> None:
    acme, bolt = (replace(backend, spec=replace(backend.spec, also_called=words)) for backend, words in ALSO_CALLED)
    with pytest.raises(UnknownBackend) as caught:
        select_backend(Survey(states=(acme, bolt, CPU)), word)
    assert str(caught.value) == f"There is no backend {word!r}{hint} Known here: acme, bolt, cpu. Ready: acme, cpu."


def test_an_unknown_name_gets_a_suggestion_and_the_known_names() -> None:
    with pytest.raises(UnknownBackend) as caught:
        select_backend(Survey(states=(NO_DRIVER, ACME, CPU)), "acne")
    assert str(caught.value) == (
        "There is no backend 'acne'; did you mean 'acme'? Known here: acme, bolt, cpu. Ready: acme, cpu."
    )


def test_a_name_that_two_packages_list_gives_both_reasons() -> None:
    first = state("acme", Status.BROKEN, reason="also listed by two", distribution="one")
    second = state("acme", Status.BROKEN, reason="also listed by one", distribution="two")
    with pytest.raises(BackendNotReady, match=r"\[one 1\.2\]: also listed by two\. It is broken \[two 1\.2\]"):
        select_backend(Survey(states=(first, second, CPU)), "acme")


def test_a_refused_namesake_does_not_stand_in_the_way_of_the_ready_one() -> None:
    impostor = state("cpu", Status.BROKEN, 900, reason="also listed by drivetrain", distribution="impostor")
    assert select_backend(Survey(states=(impostor, CPU)), "cpu") is CPU


def test_a_tie_names_all_and_says_how_to_choose() -> None:
    with pytest.raises(BackendTie) as caught:
        select_backend(Survey(states=(ACME, state("zap", Status.READY, 100), CPU)))
    assert str(caught.value) == (
        "'acme' (acme 1.2) and 'zap' (zap 1.2) are ready and share the highest priority, 100. "
        'Choose one: backend = "acme" in drivetrain.toml, or --backend acme.'
    )


def test_a_tie_below_the_highest_priority_does_not_matter() -> None:
    best = state("best", Status.READY, 101)
    assert select_backend(Survey(states=(ACME, best, state("zap", Status.READY, 100)))) is best


def test_none_ready_gives_the_reason_of_each() -> None:
    with pytest.raises(NoBackendReady) as caught:
        select_backend(Survey(states=(CRASHED, NO_DRIVER)))
    assert str(caught.value) == (
        "No backend can serve here."
        "\n  volt (broken): its probe was killed by SIGSEGV."
        "\n  bolt (unavailable): no driver is loaded. Next: load bolt.ko."
    )


def test_none_installed_says_so() -> None:
    with pytest.raises(NoBackendReady, match=r"^No backend is installed\. Install drivetrain again"):
        select_backend(Survey(states=()))


IDLE = replace(
    state("bolt", Status.UNAVAILABLE, 100, reason="torch is a CPU build", next_step="install another"),
    devices=(DeviceInfo(index=0, name="Bolt 9", architecture="b9", memory_bytes=1, free_memory_bytes=1),) * 2,
    idle_hardware=True,
)


def test_hardware_that_its_backend_cannot_use_is_never_passed_over_silently() -> None:
    with pytest.raises(HardwareIdle) as caught:
        select_backend(Survey(states=(IDLE, CPU)))
    assert str(caught.value) == (
        "The hardware of the backend 'bolt' is in this machine (Bolt 9), but it cannot serve on it. "
        "It is unavailable [bolt 1.2]: torch is a CPU build. Next: install another. Nothing slower is used in its "
        'place unless you ask for it: --backend cpu, or backend = "cpu" in drivetrain.toml.'
    )
    report = report_on(Survey(states=(IDLE, CPU)))
    assert report.selected is None
    assert report.selection == str(caught.value)


def test_idle_hardware_does_not_stand_in_the_way_of_who_asks_for_another_one() -> None:
    assert select_backend(Survey(states=(IDLE, CPU)), "cpu") is CPU
    assert select_backend(Survey(states=(replace(IDLE, status=Status.BLOCKED), CPU))) is CPU


def test_idle_hardware_of_no_higher_priority_does_not_matter() -> None:
    assert select_backend(Survey(states=(IDLE, CPU, ACME))) is ACME


def test_hardware_of_a_broken_backend_whose_priority_is_unknown_stands_in_the_way() -> None:
    unread = replace(IDLE, status=Status.BROKEN, spec=None)
    with pytest.raises(HardwareIdle, match="It is broken"):
        select_backend(Survey(states=(CPU, ACME, unread)))


def test_a_refused_namesake_of_a_ready_backend_and_one_that_is_not_installed_do_not_matter() -> None:
    namesake = replace(IDLE, name="acme", status=Status.BROKEN, spec=None)
    absent = replace(IDLE, name="volt", origin=None, spec=None)
    assert select_backend(Survey(states=(ACME, CPU, namesake, absent))) is ACME


def test_a_report_says_which_one_and_why() -> None:
    report = report_on(Survey(states=(ACME, CPU)))
    assert report.selected == "acme"
    assert report.selection == (
        "'acme' is used because its priority, 100, is the highest of the ready ones (acme, cpu)."
    )
    assert report_on(Survey(states=(ACME, CPU)), "cpu").selection == "'cpu' is used because it was asked for."


def test_a_report_holds_the_error_of_a_selection_that_fails() -> None:
    report = report_on(Survey(states=(NO_DRIVER,)))
    assert report.selected is None
    assert report.selection.startswith("No backend can serve here.\n  bolt (unavailable)")
