"""The `drivetrain` command. Each command imports what it needs when it runs, so that `--help` answers at once."""

from drivetrain_server.cli.entry import main

__all__ = ["main"]
