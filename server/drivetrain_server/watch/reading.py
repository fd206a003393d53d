"""What `/metrics` said at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drivetrain.errors import DrivetrainError

Labels = tuple[tuple[str, str], ...]
Buckets = tuple[tuple[float, float], ...]
"""(upper bound in seconds, observations up to it), in order."""


class NotDrivetrain(DrivetrainError):
    """The address answers, but not with the metrics of a Drivetrain server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One scrape. Counters are totals since the server or its engine began.

    Attributes:
        at_s: seconds on a monotonic clock.
        samples: (name, sorted labels) to value.
        engine: the gauges and counters of the engine are there; false while it starts.
    """

    at_s: float
    samples: Mapping[tuple[str, Labels], float]

    @property
    def ready(self) -> bool:
        """New requests are taken."""
        return self.value("drivetrain_ready") == 1

    @property
    def engine(self) -> bool:
        """The engine runs."""
        return ("drivetrain_requests_running", ()) in self.samples

    def value(self, name: str, **labels: str) -> float:
        """A gauge or counter; 0 where it is absent."""
        return self.samples.get((name, tuple(sorted(labels.items()))), 0.0)

    def labels(self, name: str) -> dict[str, str]:
        """The labels of the first sample of that name."""
        for found, labels in self.samples:
            if found == name:
                return dict(labels)
        return {}

    def total(self, name: str, **wanted: str) -> float:
        """The sum over all samples of that name whose labels begin with the values in `wanted`."""
        return sum(
            value
            for (found, labels), value in self.samples.items()
            if found == name and all(dict(labels).get(key, "").startswith(start) for key, start in wanted.items())
        )

    def buckets(self, name: str) -> Buckets:
        """The cumulative buckets of a histogram, summed over its other labels."""
        sums: dict[float, float] = {}
        for (found, labels), value in self.samples.items():
            if found == f"{name}_bucket":
                bound = float(dict(labels)["le"])
                sums[bound] = sums.get(bound, 0.0) + value
        return tuple(sorted(sums.items()))


def read_metrics(text: str, at_s: float) -> Reading:
    """Parse Prometheus's text format.

    Raises:
        NotDrivetrain: it is something else.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
    except ValueError as error:
        raise NotDrivetrain(f"/metrics is not in Prometheus's text format: {error}") from error
    if ("drivetrain_ready", ()) not in samples:
        raise NotDrivetrain("/metrics has no drivetrain_ready; is this a Drivetrain server?")
    return Reading(at_s=at_s, samples=samples)
