"""What the scheduler may use, and how it orders requests."""

from __future__ import annotations

from dataclasses import dataclass

from drivetrain.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerLimits:
    """Limits and policy of one scheduler.

    Raises:
        ConfigError: a limit is out of range or contradicts another.
    """

    max_num_rows: int
    """Requests that run at once: slots of the device's state."""
    max_step_tokens: int
    """Tokens of a step, decode rows included."""
    max_model_len: int
    """Tokens of a request, prompt and answer."""
    page_size: int
    """Tokens of a KV page."""
    num_pages: int
    """Pages of the KV cache, the null page included."""
    max_waiting: int = 4096
    """Requests that wait at most; one more is refused with Overloaded."""
    mixed_steps: bool = True
    """Whether decode rows and prefill chunks may share a step."""
    max_prefills_per_step: int | None = None
    """Prefill rows of a step at most; None leaves it to the token budget."""
    max_total_pages: int | None = None
    """Pages that the rows of a step read together at most, each counted once a row; None is no limit."""
    chunked_prefill: bool = True
    """Whether a prompt may be computed over several steps."""
    prefix_cache: bool = True
    """Whether full blocks are kept and found again."""
    overlap: int = 1
    """Steps scheduled ahead of the oldest one that has not landed; 0 (or False) waits for each step."""
    aging_s: float = 10.0
    """Seconds of waiting that outweigh one level of priority."""

    def __post_init__(self) -> None:
        lowest = {
            "max_num_rows": 1,
            "max_step_tokens": 1,
            "max_model_len": 2,
            "page_size": 1,
            "num_pages": 2,
            "max_waiting": 1,
            "overlap": 0,
        }
        for name, low in lowest.items():
            got = getattr(self, name)
            if got < low:
                raise ConfigError(f"{name}: expected at least {low}, got {got}")
        if self.max_prefills_per_step is not None and self.max_prefills_per_step < 1:
            raise ConfigError(f"max_prefills_per_step: expected at least 1 or none, got {self.max_prefills_per_step}")
        longest = -(-self.max_model_len // self.page_size)
        if self.max_total_pages is not None and self.max_total_pages < longest:
            raise ConfigError(
                f"max_total_pages: the device takes {self.max_total_pages} pages a step, and a request of "
                f"max_model_len {self.max_model_len} reads {longest}; lower max_model_len"
            )
        if not self.aging_s > 0.0:
            raise ConfigError(f"aging_s: expected seconds above 0, got {self.aging_s}")
        if self.max_step_tokens < self.max_num_rows:
            raise ConfigError(
                f"max_step_tokens: {self.max_step_tokens} is below max_num_rows {self.max_num_rows}, so not every "
                "running request could decode; raise it or lower max_num_rows"
            )
        if not self.chunked_prefill and self.max_step_tokens < self.max_model_len:
            raise ConfigError(
                f"max_step_tokens: {self.max_step_tokens} is below max_model_len {self.max_model_len}, which needs "
                "chunked_prefill; enable it, raise max_step_tokens or lower max_model_len"
            )

    @property
    def num_usable_pages(self) -> int:
        """KV pages that requests may have: all but the null page."""
        return self.num_pages - 1
