from __future__ import annotations

from drivetrain_server.telemetry import Histogram, Telemetry, merged, render


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
    text = render([telemetry.reading(open_requests=0)], ready=True, info=None, stats=None).decode()
    assert "drivetrain_time_to_first_token_seconds_sum 0.5" in text
    assert "drivetrain_inter_token_seconds_count 4.0" in text
    assert 'drivetrain_inter_token_seconds_bucket{le="0.01"} 4.0' in text


def test_readings_of_several_processes_add_up() -> None:
    one, two = Telemetry(), Telemetry()
    one.request("/r", "GET", 200, 0.2)
    two.request("/r", "GET", 200, 0.2)
    two.request("/r", "GET", 404, 40.0)
    one.tokens(0.5, 1, first=True)
    two.tokens(0.5, 1, first=True)
    two.disconnect()
    total = merged([one.reading(open_requests=2), two.reading(open_requests=3)])
    assert ("drivetrain_http_requests", ["/r", "GET", "200"], 2) in total.counters
    assert ("drivetrain_http_requests", ["/r", "GET", "404"], 1) in total.counters
    assert ("drivetrain_client_disconnects", [], 1) in total.counters
    assert total.open_requests == 5
    text = render([one.reading(open_requests=0), two.reading(open_requests=0)], ready=True, info=None, stats=None)
    assert b"drivetrain_time_to_first_token_seconds_count 2.0" in text
    assert b"drivetrain_time_to_first_token_seconds_sum 1.0" in text
    assert b'drivetrain_request_duration_seconds_bucket{le="0.25",route="/r"} 2.0' in text
    assert b'drivetrain_request_duration_seconds_bucket{le="60",route="/r"} 3.0' in text


def test_a_complete_answer_is_told_under_the_names_of_the_conventions() -> None:
    telemetry = Telemetry()
    telemetry.generated("chat", duration_s=1.0, first_token_s=0.5, num_tokens=11)
    telemetry.generated("chat", duration_s=0.3, first_token_s=0.3, num_tokens=1)
    text = render([telemetry.reading(open_requests=0)], ready=True, info=None, stats=None).decode()
    labels = 'gen_ai_operation_name="chat",gen_ai_request_model=""'
    assert f"gen_ai_server_request_duration_seconds_count{{{labels}}} 2.0" in text
    assert f"gen_ai_server_time_to_first_token_seconds_sum{{{labels}}} 0.8" in text
    assert f"gen_ai_server_time_per_output_token_seconds_count{{{labels}}} 1.0" in text
    assert f"gen_ai_server_time_per_output_token_seconds_sum{{{labels}}} 0.05" in text
