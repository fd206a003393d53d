"""The real server in front of an engine that listens on a socket: `python bench/stream_server.py SOCKET PORT`."""

from __future__ import annotations

import sys

from drivetrain.config.engine import EngineConfig
from drivetrain.config.server import ServerConfig
from drivetrain.frontend import load_frontend
from drivetrain.process.remote import RemoteEngine
from drivetrain_server.serve import serve

MODEL = "smollm2-135m-instruct"


def main() -> None:
    path, port = sys.argv[1:]
    config = EngineConfig(model=MODEL)
    serve(
        config,
        ServerConfig(port=int(port)),
        engine_factory=lambda _: RemoteEngine(path),
        frontend_factory=lambda engine: load_frontend(config, engine),
        announce=lambda text: print(text, file=sys.stderr, flush=True),
    )


if __name__ == "__main__":
    main()
