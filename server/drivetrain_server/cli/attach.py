"""Which running server `drivetrain chat` joins where it is given neither a server nor a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drivetrain.config import Config, EngineConfig, settings_of

if TYPE_CHECKING:
    from drivetrain_server.cli.ps import Listed

POLL_S = 0.5


async def server_to_join(config: Config) -> Listed | None:
    """A server that `drivetrain ps` lists, once it is ready; None where a model is to be loaded here.

    A flag about model or engine asks for an engine of this command's own. A model that the file or the environment
    names is looked for among the servers. Of several, the one that started last is taken.
    """
    import asyncio

    from drivetrain_server.cli.models import tell

    if any(config.origins.get(setting.name, "").startswith("--") for setting in settings_of(EngineConfig)):
        return None
    told = False
    while servers := await _servers(config):
        if ready := [server for server in servers if server.status == "ready"]:
            if len(ready) > 1:
                tell(f"joining the last started of {len(ready)} servers; --url chooses another")
            return ready[-1]
        if not told:
            tell(f"waiting for {servers[-1].url}, which is starting; `drivetrain chat MODEL` would load a model here")
            told = True
        await asyncio.sleep(POLL_S)
    return None


async def _servers(config: Config) -> list[Listed]:
    """Those that serve the configured model, or any where none is configured; ready or on the way, oldest first."""
    from drivetrain.model_store import served_name
    from drivetrain_server.cli.ps import ask_all
    from drivetrain_server.running import running_servers

    engine = config.engine
    wanted = engine.served_model_name or (served_name(engine.model) if engine.model else None)
    listed = await ask_all([server for server in running_servers() if wanted in (None, server.model)])
    return [server for server in listed if server.status in ("ready", "starting")]
