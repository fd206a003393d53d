"""Several API processes behind one address: one answer, one limit, one set of figures, whichever process is asked."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from fakes.serve_process import ServeProcess, sse_events
from fakes.waiting import LIMIT_S, until

CONFIG = """
dtype = "float32"

[limits]
max_num_seqs = 16
max_step_tokens = 128
max_model_len = 2048
num_pages = 900

[server]
api_processes = 3
api_keys = ["one", "two"]
max_requests_per_key = 6
metrics_public = true
drain_s = 300

[backend_options.cpu]
threads = 1
"""
PATH = "/v1/completions"
COUNT = 'drivetrain_http_requests_total{method="POST",route="/v1/completions",status="200"}'
BODY: dict[str, Any] = {"model": "tiny", "prompt": "Fleet:", "ignore_eos": True, "temperature": 0}


@pytest.fixture
def fleet(tiny_model: Path, tmp_path: Path) -> Iterator[ServeProcess]:
    with ServeProcess(tmp_path, tiny_model, CONFIG) as server:
        yield server


def post(server: ServeProcess, key: str = "one", **body: Any) -> httpx.Response:
    """On a connection of its own: the system chooses the process."""
    headers = {"authorization": f"Bearer {key}"}
    return httpx.post(server.url + PATH, json=BODY | body, headers=headers, timeout=LIMIT_S)


def members(server: ServeProcess) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == server.process.pid and b"drivetrain_server.fleet.member" in command:
                found.append(int(entry.name))
    return found


def served(server: ServeProcess) -> float:
    """Completions that were answered, as one of the processes tells."""
    text = httpx.get(server.url + "/metrics", timeout=LIMIT_S).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(COUNT))


def test_limits_and_figures_hold_over_all_processes_and_a_dead_one_is_replaced(fleet: ServeProcess) -> None:
    first = members(fleet)
    assert len(first) == 3
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda at: post(fleet, "two", max_tokens=4, seed=at), range(4)))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.json()["choices"][0]["text"] for answer in answers}) == 1

        # Exactly six of one key at a time, wherever they arrive.
        with fleet.engine_held():
            long = [pool.submit(post, fleet, max_tokens=200) for _ in range(6)]
            until(lambda: fleet.num_open == 6)
            refused = [post(fleet, max_tokens=1) for _ in range(6)]
            other = pool.submit(post, fleet, "two", max_tokens=1)
            until(lambda: fleet.num_open == 7)
        assert {answer.status_code for answer in refused} == {429}
        assert other.result().status_code == 200
        assert [each.result().status_code for each in long] == [200] * 6
    assert post(fleet, max_tokens=1).status_code == 200

    # Any process tells the sum of all, as soon as each has told what it counted; the supervisor knows it then.
    until(lambda: {served(fleet) for _ in range(8)} == {12.0})
    os.kill(first[0], signal.SIGKILL)
    until(lambda: len(members(fleet)) == 3 and first[0] not in members(fleet))
    # Connections to its socket wait for the next process; none is refused, and nothing counted is lost.
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: post(fleet, "two", max_tokens=2), range(6)))
    assert {answer.status_code for answer in answers} == {200}
    until(lambda: {served(fleet) for _ in range(8)} == {18.0})
    fleet.assert_all_pages_back(899)
    assert fleet.end() == 0


def test_a_kept_response_is_known_to_all_processes_and_to_its_key_alone(fleet: ServeProcess) -> None:
    """Each call has a connection of its own, and the system chooses the process: a dozen meet all three."""

    def call(method: str, path: str, key: str = "one", **body: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"}
        url = f"{fleet.url}/v1/responses{path}"
        return httpx.request(method, url, json=body or None, headers=headers, timeout=LIMIT_S)

    asked = {"model": "tiny", "input": "Hi", "max_output_tokens": 4, "temperature": 0}
    first = call("POST", "", **asked).json()
    assert [call("GET", f"/{first['id']}").json() for _ in range(12)] == [first] * 12
    assert {call("GET", f"/{first['id']}", "two").status_code for _ in range(12)} == {404}
    assert {call("DELETE", f"/{first['id']}", "two").status_code for _ in range(6)} == {404}

    # A megabyte that the template does not show, known everywhere as soon as the client is answered.
    last = first
    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "x" * 1_000_000}]}
    items = [thought, {"role": "user", "content": "More"}]
    for turn in range(4):
        answer = call("POST", "", previous_response_id=last["id"], **asked | {"input": items})
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["input_tokens"] > last["usage"]["input_tokens"], turn
        last = answer.json()
    assert len(call("GET", f"/{last['id']}/input_items").content) > 1_000_000

    before = members(fleet)
    for pid in before[:2]:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(members(fleet)) == 3 and not {*before[:2]} & {*members(fleet)})
    assert {call("GET", f"/{first['id']}").status_code for _ in range(12)} == {200}
    assert call("DELETE", f"/{first['id']}").json()["deleted"]
    assert {call("GET", f"/{first['id']}").status_code for _ in range(12)} == {404}
    assert fleet.end() == 0


def test_a_dying_process_takes_its_requests_with_it_and_a_dying_engine_is_told_by_all(fleet: ServeProcess) -> None:
    def stream(results: list[list[dict[str, Any]]]) -> None:
        events: list[dict[str, Any]] = []
        results.append(events)
        body = BODY | {"stream": True, "max_tokens": 1500}
        try:
            with httpx.stream(
                "POST", fleet.url + PATH, json=body, headers={"authorization": "Bearer two"}, timeout=60
            ) as answer:
                for event in sse_events(answer):
                    events.append(event)
        except httpx.TransportError:
            events.append({"cut": True})

    results: list[list[dict[str, Any]]] = []
    threads = [threading.Thread(target=stream, args=(results,)) for _ in range(6)]
    with fleet.engine_held():
        for thread in threads:
            thread.start()
        until(lambda: fleet.num_open == 6)
    until(lambda: all(results))  # those that have brought nothing are given to the next engine
    with fleet.engine_held():
        dead = members(fleet)[0]
        os.kill(dead, signal.SIGKILL)
        until(lambda: dead not in members(fleet))
        fleet.kill_engine()
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()
    for events in results:
        last = events[-1]
        assert last.get("cut") or last["error"]["code"] == "engine_dead", last
    fleet.wait_ready()
    until(lambda: post(fleet, max_tokens=3).status_code == 200)
    fleet.assert_all_pages_back(899)
    assert fleet.end() == 0


def test_sigterm_lets_every_process_finish(fleet: ServeProcess) -> None:
    with ThreadPoolExecutor(6) as pool:
        with fleet.engine_held():
            running = [pool.submit(post, fleet, max_tokens=300) for _ in range(6)]
            until(lambda: fleet.num_open == 6)
            fleet.process.send_signal(signal.SIGTERM)
            until(lambda: {httpx.get(fleet.url + "/ready").status_code for _ in range(24)} == {503})
            late = [post(fleet, "two", max_tokens=1) for _ in range(4)]
        assert {answer.status_code for answer in late} == {503}
        assert {answer.json()["error"]["code"] for answer in late} == {"draining"}
        assert [answer.result().text for answer in running if answer.result().status_code != 200] == []
    assert fleet.process.wait(LIMIT_S) == 0


def test_a_text_layer_that_cannot_be_loaded_ends_the_server_with_its_reason(tiny_model: Path, tmp_path: Path) -> None:
    config = 'chat_template = "missing.jinja"\n' + CONFIG
    with pytest.raises(AssertionError, match=r"cannot read missing\.jinja"), ServeProcess(tmp_path, tiny_model, config):
        pass
