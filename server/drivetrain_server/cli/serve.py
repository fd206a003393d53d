"""`drivetrain serve`: the HTTP server."""

from __future__ import annotations

import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from drivetrain.config import Config, EngineConfig, ServerConfig
from drivetrain_server.cli.config_flags import configured

if TYPE_CHECKING:
    from drivetrain.client import EngineClient
    from drivetrain_server.lifecycle import FrontendFactory

REFRESH_S = 0.1


@configured(EngineConfig, ServerConfig)
def serve(config: Config) -> None:
    """Serve a model over HTTP, OpenAI-style.

    Shows the phases of the start, the plan of the device's memory, and a request to try.
    """
    from drivetrain_server.cli.engine import frontend_factory, new_engine
    from drivetrain_server.cli.models import with_model
    from drivetrain_server.logs import set_up_logs

    set_up_logs(config.server.log_format)
    config = with_model(config)
    if config.server.api_processes > 1:
        _run_fleet(config)
        return
    engine = new_engine(config)
    engine.launch()
    try:
        _run(config, engine, frontend_factory(config))
    finally:
        engine.abandon()


def _run(config: Config, engine: EngineClient, frontend_factory: FrontendFactory) -> None:
    with _phases_shown(engine) as announce:
        # Imported while the engine loads.
        from drivetrain_server.serve import serve as run_server

        run_server(
            config.engine,
            config.server,
            engine_factory=lambda _: engine,
            frontend_factory=frontend_factory,
            announce=announce,
        )


def _run_fleet(config: Config) -> None:
    from drivetrain.process.client import ProcessEngine

    with tempfile.TemporaryDirectory(prefix="drivetrain-") as folder:
        path = str(Path(folder) / "engine.sock")
        engine = ProcessEngine(config.engine, socket_path=path)
        engine.launch()
        try:
            with _phases_shown(engine) as announce:
                from drivetrain_server.fleet.serve import serve_fleet

                serve_fleet(engine, path, config.engine, config.server, announce=announce)
        finally:
            engine.abandon()


@contextmanager
def _phases_shown(engine: EngineClient) -> Generator[Callable[[str], None], None, None]:
    """Show the start of the engine in a thread of its own, so that bars never wait.

    Yields:
        What tells the user a text; once the engine has started, not before its phases have been shown to their end.
    """
    ended = threading.Event()
    shown = threading.Thread(target=_show_phases, args=(engine, ended), name="phases", daemon=True)

    def announce(text: str) -> None:
        if engine.info is not None:
            ended.set()
            shown.join()
        print(text, file=sys.stderr, flush=True)

    shown.start()
    try:
        yield announce
    finally:
        ended.set()
        shown.join()


def _show_phases(engine: EngineClient, ended: threading.Event) -> None:
    """Show start-up until the engine is ready or the server ends."""
    from drivetrain_server.cli.phases import phase_reporter

    with phase_reporter() as reporter:
        while not ended.wait(REFRESH_S) and engine.info is None and engine.failure is None:
            reporter.show(engine.phases)
        reporter.show(engine.phases)
