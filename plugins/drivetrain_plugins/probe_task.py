"""The task of a probe child: import one probe, call it, and answer with what it found or with what went wrong.

Runs only in a child of `probing`. It catches everything that the probe raises, so that the answer holds a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from drivetrain_plugins.child import describe
from drivetrain_plugins.import_string import import_object
from drivetrain_plugins.spec import ProbeResult


def run_probe(target: str) -> dict[str, object]:
    """Answer `{"result": ...}` or `{"failure": ...}` for the probe named by the import string `target`."""
    try:
        probe = cast("Callable[[], object]", import_object(target))
    except BaseException as error:  # SystemExit too: the answer is all that leaves this process
        return {"failure": f"importing the probe {target!r} raised {describe(error)}"}
    try:
        result = probe()
    except BaseException as error:
        return {"failure": f"the probe {target!r} raised {describe(error)}"}
    if not isinstance(result, ProbeResult):
        return {"failure": f"the probe {target!r} returned {type(result).__name__}, expected ProbeResult"}
    return {"result": result}
