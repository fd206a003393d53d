"""The quick-start model through the server's completions endpoint, beside `transformers` on the same processor.

    python bench/cpu_serving.py [--dtype bfloat16] [--repeats 3] [--no-rival]

One stream: 64 tokens in, 128 out, decode rate. Streams: 128 in, 64 out each, output rate. Prefill: 1,024 in, 1 out.
Greedy, ends ignored, fresh random prompts, medians. The rival generates a static batch in this process, without HTTP.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MODEL = "smollm2-135m-instruct"
VOCABULARY = (1000, 40_000)


def random_prompt(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(*VOCABULARY) for _ in range(count)]


class Server:
    """`drivetrain serve` in a process of its own."""

    def __init__(self, dtype: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = [sys.executable, "-c", "from drivetrain_server.cli import main; main()", "serve"]
        command += ["--model", MODEL, "--dtype", dtype, "--port", str(self.port)]
        started = time.perf_counter()
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while not self._ready():
            if self.process.poll() is not None:
                raise SystemExit("the server ended while starting")
            time.sleep(0.02)
        self.start_s = time.perf_counter() - started

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready") as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError):
            return False

    def stream(self, prompt: list[int], max_tokens: int) -> tuple[float, float]:
        """(seconds to the first token, seconds to the last)."""
        body = {
            "model": MODEL,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        started = time.perf_counter()
        first = last = 0.0
        usage: dict[str, Any] = {}
        with urllib.request.urlopen(request) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    now = time.perf_counter() - started
                    first = first or now
                    last = now if event["choices"] else last
                    usage = event.get("usage") or usage
        if usage.get("completion_tokens") != max_tokens:
            raise SystemExit(f"expected {max_tokens} tokens, got {usage}")
        return first, last

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)


def measure_server(dtype: str, repeats: int) -> dict[str, float]:
    server = Server(dtype)
    rng = random.Random(0)
    rows: dict[str, list[float]] = {}
    try:
        server.stream(random_prompt(rng, 64), 16)
        for _ in range(repeats):
            first, last = server.stream(random_prompt(rng, 64), 128)
            rows.setdefault("one stream, decode tok/s", []).append(127 / (last - first))
            for streams in (8, 32):
                prompts = [random_prompt(rng, 128) for _ in range(streams)]
                started = time.perf_counter()
                with ThreadPoolExecutor(streams) as pool:
                    list(pool.map(lambda prompt: server.stream(prompt, 64), prompts))
                rate = streams * 64 / (time.perf_counter() - started)
                rows.setdefault(f"{streams} streams, output tok/s", []).append(rate)
            first, _ = server.stream(random_prompt(rng, 1024), 1)
            rows.setdefault("prefill 1,024, tok/s", []).append(1024 / first)
    finally:
        server.close()
    return {"start, s": round(server.start_s, 2)} | {name: round(statistics.median(v), 1) for name, v in rows.items()}


def measure_transformers(dtype: str, repeats: int) -> dict[str, float]:
    """The same weights in `transformers`, a static batch."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from drivetrain.config_files import load_model_config
    from drivetrain.model_store import resolve_model
    from drivetrain.weights.source import open_weights

    path = resolve_model(MODEL)
    config = LlamaConfig(**load_model_config(path))
    model = LlamaForCausalLM(config).to(getattr(torch, dtype)).eval()
    source = open_weights(path)
    model.load_state_dict({name: source.get(name) for name in source.names()}, strict=False)
    model.tie_weights()
    model.generation_config.eos_token_id = None
    rng = random.Random(0)
    rows: dict[str, list[float]] = {}

    def generate(streams: int, prompt: int, tokens: int) -> float:
        ids = torch.tensor([random_prompt(rng, prompt) for _ in range(streams)])
        started = time.perf_counter()
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        elapsed = time.perf_counter() - started
        assert made.shape == (streams, prompt + tokens)
        return elapsed

    with torch.inference_mode():
        generate(1, 64, 4)
        for _ in range(repeats):
            first = generate(1, 64, 1)
            rows.setdefault("one stream, decode tok/s", []).append(127 / (generate(1, 64, 128) - first))
            for streams in (8, 32):
                rate = streams * 64 / generate(streams, 128, 64)
                rows.setdefault(f"{streams} streams, output tok/s", []).append(rate)
            rows.setdefault("prefill 1,024, tok/s", []).append(1024 / generate(1, 1024, 1))
    return {name: round(statistics.median(values), 1) for name, values in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-rival", action="store_true")
    arguments = parser.parse_args()
    ours = measure_server(arguments.dtype, arguments.repeats)
    print(json.dumps({"drivetrain": ours}), flush=True)
    if not arguments.no_rival:
        theirs = measure_transformers(arguments.dtype, arguments.repeats)
        print(json.dumps({"transformers": theirs}), flush=True)
        ratios = {name: round(ours[name] / value, 2) for name, value in theirs.items()}
        print(json.dumps({"ratio": ratios}), flush=True)


if __name__ == "__main__":
    main()
