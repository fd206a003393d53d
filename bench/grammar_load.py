"""Gaps between the tokens of a plain stream while other answers follow grammars that are legal and costly.

    python bench/grammar_load.py [--beside 4] [--tokens 240] [--model MODEL]

The quick-start model over HTTP. First the stream runs alone, then beside answers to a usual schema, then beside answers
to grammars whose masks take from milliseconds to a second: each kind `--beside` at a time, sent anew as they end. Told
of the stream are its gaps; of the answers, how many ended, with which status, and their tokens a second.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from cpu_load import MODEL, free_port, percentile, serving

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 8},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
DIVISORS = {"allOf": [{"type": "integer", "multipleOf": prime} for prime in (997, 991, 983, 977)]}
KINDS: dict[str, list[dict[str, Any]]] = {
    "a schema": [{"guided_json": PERSON}],
    "costly grammars": [
        {"guided_grammar": 'start: e\ne: e e | "a" | "b"'},
        {"guided_grammar": 'start: start start | "a" |'},
        {"guided_json": DIVISORS},
    ],
}

BODY = {
    "model": MODEL,
    "prompt": "a" * 60,
    "max_tokens": 240,
    "ignore_eos": True,  # or costly ones would end before they are
    "seed": 1,
    "stream": True,
    "return_token_ids": True,
}


@dataclass(slots=True)
class Others:
    """What came of the answers beside the stream."""

    statuses: Counter[int] = field(default_factory=Counter[int])
    tokens: int = 0


async def stream_gaps(client: httpx.AsyncClient, tokens: int) -> list[float]:
    """Seconds between the tokens of one plain answer."""
    body = {
        "model": MODEL,
        "prompt": "Once upon a time",
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
    }
    times: list[float] = []
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                times.append(time.perf_counter())
    return [later - earlier for earlier, later in itertools.pairwise(times)]


async def keep_asking(client: httpx.AsyncClient, fields: dict[str, Any], others: Others) -> None:
    while True:
        async with client.stream("POST", "/v1/completions", json=BODY | fields) as answer:
            status = answer.status_code
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    for choice in event.get("choices", ()):
                        others.tokens += len(choice.get("token_ids") or ())
                    status = int(event.get("error", {}).get("code") or status) if "error" in event else status
        others.statuses[status] += 1


async def measure(url: str, beside: list[dict[str, Any]], tokens: int) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        await stream_gaps(client, 8)
        others = Others()
        tasks = [asyncio.create_task(keep_asking(client, fields, others)) for fields in beside]
        if tasks:
            await asyncio.sleep(2.0)  # checked, compiled and under way
        started, tokens_before = time.perf_counter(), others.tokens
        gaps = await stream_gaps(client, tokens)
        elapsed_s, other_tokens = time.perf_counter() - started, others.tokens - tokens_before
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "gap_p50_ms": percentile(gaps, 0.5),
        "gap_p99_ms": percentile(gaps, 0.99),
        "gap_max_ms": percentile(gaps, 1.0),
        "seconds": round(elapsed_s, 2),
        "others_tokens_per_s": round(other_tokens / elapsed_s, 1),
        "others_ended": dict(others.statuses),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--beside", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=240)
    parser.add_argument("--model", default=MODEL)
    options = parser.parse_args()
    port = free_port()
    command = [sys.executable, "-c", "from drivetrain_server.cli import main; main()", "serve"]
    command += [
        "--model",
        options.model,
        "--served-model-name",
        MODEL,
        "--port",
        str(port),
        "--max-model-len",
        "2048",
        "--dtype",
        "bfloat16",
    ]
    with serving(command, port, "/ready") as url:
        print(json.dumps({"beside": "nothing"} | asyncio.run(measure(url, [], options.tokens))), flush=True)
        for name, fields in KINDS.items():
            beside = [fields[at % len(fields)] for at in range(options.beside)]
            print(json.dumps({"beside": name} | asyncio.run(measure(url, beside, options.tokens))), flush=True)


if __name__ == "__main__":
    main()
