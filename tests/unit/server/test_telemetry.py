from __future__ import annotations

from drivetrain_server.telemetry import Histogram, Telemetry


def test_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram((0.1, 1.0))
    histogram.observe(0.1)
    histogram.observe(0.5, times=3)
    histogram.observe(7.0)
    assert histogram.buckets() == [("0.1", 1), ("1", 4), ("+Inf", 5)]
    assert histogram.total == 0.1 + 1.5 + 7.0


def test_tokens_of_one_event_share_its_time() -> None:
    telemetry = Telemetry()
    telemetry.tokens(0.5, 1, first=True)
    telemetry.tokens(0.04, 4, first=False)
    telemetry.tokens(0.04, 0, first=False)
    text = telemetry.render(ready=True, info=None, stats=None).decode()
    assert "drivetrain_time_to_first_token_seconds_sum 0.5" in text
    assert "drivetrain_inter_token_seconds_count 4.0" in text
    assert 'drivetrain_inter_token_seconds_bucket{le="0.01"} 4.0' in text
