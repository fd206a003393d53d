"""The entry point: runs the command line and turns errors into one clear block and an exit status."""

from __future__ import annotations

import os
import sys

from drivetrain.errors import ConfigError, DrivetrainError, ModelNotFound, UnknownBackend

USAGE_ERRORS = (ConfigError, ModelNotFound, UnknownBackend)
EXIT_USAGE = 2
EXIT_FAILURE = 1
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 is success, 1 a failure, 2 wrong usage or configuration, 130 Ctrl-C.

    Args:
        arguments: what follows the command's name; None takes them from the process.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    debug = "--debug" in own or os.environ.get("DRIVETRAIN_DEBUG", "") not in ("", "0")
    arguments = [argument for argument in own if argument != "--debug"] + arguments[len(own) :]
    completing = "_DRIVETRAIN_COMPLETE" in os.environ
    try:
        from drivetrain_server.cli.app import build_app

        command = next((argument for argument in arguments if not argument.startswith("-")), "")
        build_app(None if completing else command)(args=arguments, prog_name="drivetrain")
    except DrivetrainError as error:
        if debug:
            import traceback

            traceback.print_exc()
        print(error_block(error), file=sys.stderr)
        sys.exit(EXIT_USAGE if isinstance(error, USAGE_ERRORS) else EXIT_FAILURE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_BROKEN_PIPE)


def error_block(error: DrivetrainError) -> str:
    """What a person reads when a command fails: every line of the message, marked."""
    first, *rest = str(error).splitlines() or [type(error).__name__]
    if not rest:
        return f"error: {first}"
    return "\n".join([f"error: {1 + len(rest)} problems", *(f"  - {line}" for line in (first, *rest))])
