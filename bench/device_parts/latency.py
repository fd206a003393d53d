"""Time to first token and between tokens against load, with `drivetrain bench` as the client."""

from __future__ import annotations

import json
import subprocess

from device_parts.serving import DRIVETRAIN, MODEL, Server
from device_parts.settings import Record, Settings

INPUT_TOKENS, OUTPUT_TOKENS = 512, 128
LEAST_REQUESTS = 8


def run(settings: Settings, record: Record) -> None:
    """Every rate in turn against one server."""
    inputs, outputs = (24, 8) if settings.tiny else (INPUT_TOKENS, OUTPUT_TOKENS)
    record.put(model=settings.http_model, input_tokens=inputs, output_tokens=outputs)
    with Server(settings) as server:
        server.wait_ready()
        for index, rate in enumerate(settings.rates):
            num_requests = max(LEAST_REQUESTS, round(rate * settings.rate_s))
            command = [*DRIVETRAIN, "bench", "--url", server.url, "--model", MODEL, "--json", "--rate", str(rate)]
            command += ["--num-requests", str(num_requests), "--seed", str(10 * index), "--temperature", "0.6"]
            command += ["--input-tokens", str(inputs), "--output-tokens", str(outputs), "--vocab-size", "4096"]
            answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if not answer.stdout:
                record.fail(f"{rate:g} requests/s: drivetrain bench ended with {answer.returncode} and no result")
                continue
            report = json.loads(answer.stdout)
            row = {"rate": rate, "requests": num_requests} | report
            print("LATENCY", json.dumps({key: row[key] for key in ("rate", "succeeded", "ttft_ms", "itl_ms")}))
            record.append("rates", row)
            if report["failed"]:
                record.fail(f"{rate:g} requests/s: {report['failed']} failed: {report['problems']}")
