"""`drivetrain serve`: the HTTP server."""

from __future__ import annotations

from drivetrain.config import Config, EngineConfig, ServerConfig

from drivetrain_server.cli.config_flags import configured


@configured(EngineConfig, ServerConfig)
def serve(config: Config) -> None:
    """Serve a model over HTTP, OpenAI-style."""
    from drivetrain_server.cli.models import with_model
    from drivetrain_server.serve import serve as run_server

    run_server(with_model(config))
