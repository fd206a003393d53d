"""`python -m fakes.serve_main DRAIN_S [stuck]`: the real `serve` over a fake engine whose answers never end.

`stuck` is an engine that never becomes ready.
"""

from __future__ import annotations

import sys
import threading

from drivetrain.config.engine import EngineConfig
from drivetrain.config.server import ServerConfig
from drivetrain_server.serve import serve
from fakes.engine import FakeEngine, says
from fakes.server import frontend_factory


def main() -> None:
    engine = FakeEngine(says("endless " * 400))
    engine.pause_s = 0.01
    if "stuck" in sys.argv:
        engine.start_gate = threading.Event()
    serve(
        EngineConfig(model="tiny"),
        ServerConfig(port=0, drain_s=float(sys.argv[1])),
        engine_factory=lambda config: engine,
        frontend_factory=frontend_factory,
        announce=lambda text: print(text, flush=True),
    )
    print(f"shut down: {engine.was_shut_down}, aborted: {len(engine.aborted)}", flush=True)


if __name__ == "__main__":
    main()
