"""The real `pyhlml` against a small libhlml that is compiled here: what is asked of the cards, and how it fails."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from drivetrain_gaudi.telemetry import Card, TelemetryUnavailable, read_host

LIBRARY = r"""
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* Structures as pyhlml declares them. */
struct memory { unsigned long long free, total, used; };
struct utilization { unsigned int aip; };

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, LOST = 15 };

static int started;
static int cards[2] = {7, 9};

static int index_of(void *device) { return device == &cards[0] ? 0 : device == &cards[1] ? 1 : -1; }

int hlml_init(void) { started = 1; return SUCCESS; }
int hlml_shutdown(void) { int was = started; started = 0; return was ? SUCCESS : UNINITIALIZED; }
int hlml_device_get_count(unsigned int *count) {
  if (!started) return UNINITIALIZED;
  *count = 2;
  return SUCCESS;
}
int hlml_device_get_handle_by_index(unsigned int index, void **device) {
  if (!started) return UNINITIALIZED;
  if (index > 1) return INVALID_ARGUMENT;
  *device = &cards[index];
  return SUCCESS;
}
int hlml_device_get_name(void *device, char *name, unsigned int length) {
  if (index_of(device) < 0) return INVALID_ARGUMENT;
  snprintf(name, length, "HL-225");
  return SUCCESS;
}
int hlml_device_get_uuid(void *device, char *uuid, unsigned int length) {
  if (index_of(device) < 0) return INVALID_ARGUMENT;
  snprintf(uuid, length, "01P0-HL2080A0-%d", index_of(device));
  return SUCCESS;
}
int hlml_device_get_memory_info(void *device, struct memory *memory) {
  if (index_of(device) < 0) return INVALID_ARGUMENT;
#ifdef CARD_IS_LOST
  return LOST;
#endif
  memory->total = 103079215104ULL;
  memory->used = 1073741824ULL * (index_of(device) + 1);
  memory->free = memory->total - memory->used;
  return SUCCESS;
}
int hlml_device_get_module_id(void *device, unsigned int *module) {
  if (index_of(device) < 0) return INVALID_ARGUMENT;
  *module = 3 + index_of(device);
  return SUCCESS;
}
int hlml_device_get_utilization_rates(void *device, struct utilization *rates) {
  if (index_of(device) < 0) return INVALID_ARGUMENT;
  rates->aip = 40 + index_of(device);
  return SUCCESS;
}
int hlml_device_get_temperature(void *device, unsigned int sensor, unsigned int *degrees) {
  if (index_of(device) < 0 || sensor != 0) return INVALID_ARGUMENT;
  *degrees = 51 + index_of(device);
  return SUCCESS;
}
int hlml_device_get_power_usage(void *device, unsigned int *milliwatts) {
  (void)milliwatts;
  return index_of(device) < 0 ? INVALID_ARGUMENT : NOT_SUPPORTED;
}
int hlml_get_driver_version(char *version, unsigned int length) {
  snprintf(version, length, "1.19.0-561");
  return SUCCESS;
}
"""


@pytest.fixture
def pyhlml(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package itself."""
    return pytest.importorskip("pyhlml", reason="needs the package pyhlml")


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which("gcc") or shutil.which("cc")
    if found is None:
        pytest.skip("needs a C compiler")
    return found


def compile_library(compiler: str, folder: Path, *flags: str) -> Path:
    source, library = folder / "hlml.c", folder / "libhlml.so"
    source.write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-Wall", "-Werror", *flags, "-o", library, source], check=True)
    return library


def load_from(monkeypatch: pytest.MonkeyPatch, library: Path) -> None:
    """pyhlml looks in one place; this is another."""
    from pyhlml.hlml_lib import LibHLML

    monkeypatch.setattr(LibHLML.__init__, "__defaults__", (str(library),))


def test_every_card_is_read_whole(pyhlml: Any, compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_from(monkeypatch, compile_library(compiler, tmp_path))
    host = read_host()
    assert host.driver == "1.19.0-561"
    first, second = host.cards
    assert first == Card(
        index=0,
        name="HL-225",
        uuid="01P0-HL2080A0-0",
        memory_bytes=96 << 30,
        used_bytes=1 << 30,
        module_id=3,
        utilization=40,
        temperature=51,
        power_mw=None,  # this library does not tell
    )
    assert (second.uuid, second.used_bytes, second.module_id) == ("01P0-HL2080A0-1", 2 << 30, 4)
    assert read_host() == host, "it may be asked again"


def test_a_card_that_is_lost_is_told(
    pyhlml: Any, compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_from(monkeypatch, compile_library(compiler, tmp_path, "-DCARD_IS_LOST"))
    with pytest.raises(TelemetryUnavailable, match="hlml does not answer: AIP Lost"):
        read_host()


def test_a_missing_library_is_told_and_nothing_is_printed(
    pyhlml: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_from(monkeypatch, tmp_path / "absent.so")
    with pytest.raises(TelemetryUnavailable, match="hlml does not start"):
        read_host()
    assert capsys.readouterr().out == ""


def test_a_missing_package_is_told() -> None:
    def absent() -> Any:
        raise ModuleNotFoundError("No module named 'pyhlml'")

    with pytest.raises(TelemetryUnavailable, match="pyhlml is not installed"):
        read_host(absent)
