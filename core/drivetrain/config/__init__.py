"""One configuration: `drivetrain.toml`, environment variables and flags, by one rule.

The field `limits.max_step_tokens` is `max_step_tokens` under `[limits]` in the file, `DRIVETRAIN_MAX_STEP_TOKENS` in
the environment and `--max-step-tokens` on the command line. Flags win over the environment, which wins over the file.
"""

from drivetrain.config.engine import EngineConfig
from drivetrain.config.load import Config, all_settings, load_config
from drivetrain.config.schema import Setting, docs_of, settings_of
from drivetrain.config.sections import SECTIONS
from drivetrain.config.server import ServerConfig, is_loopback
from drivetrain.config.values import format_size, parse_size

__all__ = [
    "SECTIONS",
    "Config",
    "EngineConfig",
    "ServerConfig",
    "Setting",
    "all_settings",
    "docs_of",
    "format_size",
    "is_loopback",
    "load_config",
    "parse_size",
    "settings_of",
]
