"""`drivetrain serve`: the HTTP server."""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING

from drivetrain.config import Config, EngineConfig, ServerConfig
from drivetrain_server.cli.config_flags import configured

if TYPE_CHECKING:
    from drivetrain.client import EngineClient
    from drivetrain_server.lifecycle import FrontendFactory

REFRESH_S = 0.1


@configured(EngineConfig, ServerConfig)
def serve(config: Config) -> None:
    """Serve a model over HTTP, OpenAI-style."""
    from drivetrain_server.cli.engine import frontend_factory, new_engine
    from drivetrain_server.cli.models import with_model

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    config = with_model(config)
    engine = new_engine(config)
    engine.launch()
    try:
        _run(config, engine, frontend_factory(config))
    finally:
        engine.abandon()


def _run(config: Config, engine: EngineClient, frontend_factory: FrontendFactory) -> None:
    # Imported while the engine loads.
    from drivetrain_server.serve import serve as run_server

    ended = threading.Event()
    shown = threading.Thread(target=_show_phases, args=(engine, ended), name="phases", daemon=True)
    shown.start()
    try:
        run_server(
            config.engine,
            config.server,
            engine_factory=lambda _: engine,
            frontend_factory=frontend_factory,
            announce=lambda text: print(text, file=sys.stderr, flush=True),
        )
    finally:
        ended.set()
        shown.join()


def _show_phases(engine: EngineClient, ended: threading.Event) -> None:
    """Show start-up until the engine is ready or the server ends. A thread of its own, so that bars never wait."""
    from drivetrain_server.cli.phases import phase_reporter

    with phase_reporter() as reporter:
        while not ended.wait(REFRESH_S) and engine.info is None and engine.failure is None:
            reporter.show(engine.phases)
        reporter.show(engine.phases)
