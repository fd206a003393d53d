"""The child's side of `isolation`: run one task, answer with one line of JSON on the pipe, and go at once.

Third-party code runs here, so this module keeps to the standard library and starts in a few milliseconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import cast

from drivetrain_plugins.import_string import import_object

BOOTSTRAP = (
    "import json, sys; request = json.loads(sys.argv[1]); sys.path[:] = request.pop('sys_path'); "
    "from drivetrain_plugins.child import serve; serve(**request)"
)


def serve(task: str, argument: str, answer_fd: int, alarm_s: float) -> None:
    """Call `task` ("module:function") with `argument`, write what it returns as JSON, and end the process.

    The process ends without the interpreter's shutdown: threads and exit handlers of a vendor's library can neither
    delay nor crash it after the answer. The alarm ends it if the parent died and nobody else will.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, alarm_s)
    function = cast("Callable[[str], dict[str, object]]", import_object(task))
    answer = function(argument)
    try:
        line = _encode(answer)
    except (TypeError, ValueError, RecursionError) as error:
        line = _encode({"failure": f"its answer cannot be sent as JSON: {error}"})
    with open(answer_fd, "wb", closefd=False) as pipe:
        pipe.write(line)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def describe(error: BaseException) -> str:
    """Say what was raised and on which line of whose file, in one line."""
    traceback = error.__traceback__
    place = ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        place = f" ({code.co_filename}:{traceback.tb_lineno})"
        traceback = traceback.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}:{error.lineno})"
        return f"SyntaxError: {error.msg}{place}"
    message = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if message else ''}{message}{place}"


def _encode(answer: dict[str, object]) -> bytes:
    return json.dumps(answer, allow_nan=False, default=_as_dict).encode() + b"\n"


def _as_dict(value: object) -> dict[str, object]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"{type(value).__name__} is neither text, number, boolean, list nor mapping")
