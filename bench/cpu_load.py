"""Times to the first token and between tokens at rising concurrency, beside `transformers serve`, on one processor.

    python bench/cpu_load.py [--concurrency 1 4 16] [--requests 24] [--no-rival]

Both servers have the quick-start model in bf16 and get the same chats (some 200 tokens in, up to 32 out, greedy),
each streamed by a client of its own, `--concurrency` at a time. The rival's continuous batching is on; it needs `pip
install accelerate`. One server runs at a time. Times are of text events, as a reader sees them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

MODEL = "smollm2-135m-instruct"
WORDS = "river stone lamp harbor winter orchard signal copper meadow engine violin paper forest glass"
MAX_TOKENS = 32


def write_rival_model(folder: Path) -> None:
    """The quick-start model as `transformers` reads it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from drivetrain.config_files import load_model_config
    from drivetrain.model_store import resolve_model
    from drivetrain.tokenizer import load_tokenizer
    from drivetrain.weights.source import open_weights

    path = resolve_model(MODEL)
    model = LlamaForCausalLM(LlamaConfig(**load_model_config(path))).to(torch.bfloat16)
    source = open_weights(path)
    model.load_state_dict({name: source.get(name) for name in source.names()}, strict=False)
    model.tie_weights()
    model.save_pretrained(folder)
    ours = load_tokenizer(path)
    backend: Any = ours._backend
    end = backend.id_to_token(min(ours.end_ids)) if getattr(ours, "end_ids", None) else "<|im_end|>"
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=end)
    theirs.chat_template = next(iter(ours.chat_templates.values()))
    theirs.save_pretrained(folder)


@contextmanager
def serving(command: list[str], port: int, ready: str) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                if httpx.get(url + ready, timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                log.seek(0)
                raise SystemExit(f"{command[:3]} did not start:\n{log.read().decode()[-2000:]}")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)
        log.close()


async def ask(client: httpx.AsyncClient, model: str, prompt: str) -> tuple[float, list[float]]:
    """(time to the first text, times between texts) of one chat."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "stream": True,
    }
    started = last = time.perf_counter()
    first, gaps = 0.0, list[float]()
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            choices = json.loads(line[6:]).get("choices")
            if not choices or not choices[0].get("delta", {}).get("content"):
                continue
            now = time.perf_counter()
            if first:
                gaps.append(now - last)
            else:
                first = now - started
            last = now
    assert first, "no text came"
    return first, gaps


async def load(url: str, model: str, concurrency: int, requests: int) -> dict[str, float]:
    rng = random.Random(concurrency)
    prompts = ["Tell a story with these words: " + " ".join(rng.choices(WORDS.split(), k=150)) for _ in range(requests)]
    gate = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        await ask(client, model, "Hello there.")

        async def one(prompt: str) -> tuple[float, list[float]]:
            async with gate:
                return await ask(client, model, prompt)

        started = time.perf_counter()
        answers = await asyncio.gather(*map(one, prompts))
        elapsed = time.perf_counter() - started
    firsts = [first for first, _ in answers]
    gaps = [gap for _, each in answers for gap in each]
    return {
        "concurrency": concurrency,
        "first_p50_ms": percentile(firsts, 0.5),
        "first_p95_ms": percentile(firsts, 0.95),
        "gap_p50_ms": percentile(gaps, 0.5),
        "gap_p95_ms": percentile(gaps, 0.95),
        "gap_p99_ms": percentile(gaps, 0.99),
        "events_per_s": round((len(gaps) + len(firsts)) / elapsed, 1),
    }


def percentile(values: list[float], share: float) -> float:
    return round(sorted(values)[min(int(len(values) * share), len(values) - 1)] * 1e3, 1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--no-rival", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        ours = [sys.executable, "-c", "from drivetrain_server.cli import main; main()", "serve", "--model", MODEL]
        runs = {"drivetrain": ([*ours, "--dtype", "bfloat16", "--port", str(port)], port, "/ready", MODEL)}
        if not arguments.no_rival:
            write_rival_model(Path(folder))
            port = free_port()
            theirs = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", folder]
            theirs += ["--continuous-batching", "--device", "cpu", "--dtype", "bfloat16", "--port", str(port)]
            runs["transformers serve"] = (theirs, port, "/health", folder)
        for name, (command, port, ready, model) in runs.items():
            with serving(command, port, ready) as url:
                for concurrency in arguments.concurrency:
                    found = asyncio.run(load(url, model, concurrency, arguments.requests))
                    print(json.dumps({"server": name} | found), flush=True)


if __name__ == "__main__":
    main()
