"""The golden answers of the quick-start model through `drivetrain serve` in fp32: alone, from the prefix cache, and in
the company of every other kind of request, whose answers are checked too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec

from device_parts.answers import GOLDEN
from device_parts.serving import MODEL, Server
from device_parts.settings import Record, Settings

CLIENTS = 40
COMPANY = 8
"""Requests of each kind beside the golden ones."""
LIMITS: dict[str, Any] = {
    "dtype": "float32",
    "max_num_seqs": CLIENTS,
    "max_step_tokens": 72,  # so that prompts are computed in chunks beside running answers
    "max_model_len": 1024,
    "kv_memory": 1 << 30,
    "pooling": "mean",
}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
EMBEDDING_TOLERANCE = 1e-5


class Person(msgspec.Struct, forbid_unknown_fields=True):
    """What `SCHEMA` describes."""

    name: str
    age: int


def run(settings: Settings, record: Record) -> None:
    """One server for all."""
    if not settings.golden_model:
        record.put(golden="not run: no model file was given")
        return
    golden: list[dict[str, Any]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    with Server(settings, model=settings.golden_model, **LIMITS) as server:
        server.wait_ready()
        _note(record, "alone", golden, [_ids(server, each) for each in golden])
        _note(record, "from the prefix cache", golden, [_ids(server, each) for each in golden])
        embedding = _embedding(server)
        with ThreadPoolExecutor(CLIENTS) as pool:
            company = [pool.submit(kind, server, at) for at in range(COMPANY) for kind in KINDS]
            asked = [pool.submit(_ids, server, each) for each in golden]
            vectors = [pool.submit(_embedding, server) for _ in range(COMPANY)]
            _note(record, "in company", golden, [each.result() for each in asked])
            _check_company(record, company, embedding, vectors)
        pages = server.pages()
    record.put(pages=pages)
    if pages["used"] or pages["free"] + pages["cached"] != pages["capacity"]:
        record.fail(f"pages did not come back: {pages}")


def _note(record: Record, how: str, golden: Sequence[dict[str, Any]], made: Sequence[list[int]]) -> None:
    wrong = [at for at, (each, ids) in enumerate(zip(golden, made, strict=True)) if ids != each["output_ids"]]
    row = {"dtype": "float32", "how": f"over HTTP, {how}", "answers": len(golden), "wrong": wrong}
    print("GOLDEN", json.dumps(row), flush=True)
    record.append("golden", row)
    if wrong:
        record.fail(f"golden answers over HTTP in fp32, {how}: {wrong} differ")


def _check_company(
    record: Record, company: Sequence[Future[str]], expected: list[float], vectors: Sequence[Future[list[float]]]
) -> None:
    problems = [found for each in company if (found := each.result())]
    apart = max(abs(value - wanted) for each in vectors for value, wanted in zip(each.result(), expected, strict=True))
    row = {"requests": len(company), "problems": problems, "embeddings": len(vectors), "apart": apart}
    print("ANSWERS", json.dumps(row), flush=True)
    record.put(company=row)
    if problems:
        record.fail(f"{len(problems)} of {len(company)} requests beside the golden ones: {problems[:3]}")
    if not apart <= EMBEDDING_TOLERANCE:
        record.fail(f"embeddings in company differ by up to {apart:.2g}, expected at most {EMBEDDING_TOLERANCE}")


def _ids(server: Server, golden: dict[str, Any]) -> list[int]:
    body = {"prompt": golden["prompt_ids"], "max_tokens": len(golden["output_ids"]), "temperature": 0}
    return _complete(server, body)["token_ids"]


def _complete(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    answer = server.post("/v1/completions", {"model": MODEL, "return_token_ids": True} | body)
    return answer["choices"][0]


def _embedding(server: Server) -> list[float]:
    answer = server.post("/v1/embeddings", {"model": MODEL, "input": "The capital of France is Paris."})
    return answer["data"][0]["embedding"]


def _sampled(server: Server, seed: int) -> str:
    """A prompt of its own, drawn with every filter; what is wrong with the answer, or nothing."""
    rng = random.Random(seed)
    prompt = [rng.randrange(1000, 40_000) for _ in range(rng.randint(8, 120))]
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": 24, "ignore_eos": True, "temperature": 0.9, "seed": seed}
    body |= {"top_p": 0.9, "top_k": 40, "min_p": 0.01, "presence_penalty": 0.5, "repetition_penalty": 1.1}
    tokens = len(_complete(server, body)["token_ids"])
    return "" if tokens == 24 else f"sampled: got {tokens} tokens, expected 24"


def _scored(server: Server, seed: int) -> str:
    """A greedy answer with log-probabilities."""
    prompt = [1000 + seed, *range(2000, 2030)]
    body = {"prompt": prompt, "max_tokens": 12, "ignore_eos": True, "temperature": 0, "logprobs": 3}
    found = _complete(server, body)["logprobs"]["token_logprobs"]
    return "" if len(found) == 12 and all(value <= 0 for value in found) else f"scored: got {found}"


def _structured(server: Server, seed: int) -> str:
    """A drawn answer that has to follow a schema."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Invent person number {seed}. Answer in JSON."}],
        "max_tokens": 120,
        "temperature": 0.8,
        "seed": seed,
        "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}},
    }
    choice = server.post("/v1/chat/completions", body)["choices"][0]
    if choice["finish_reason"] != "stop":
        return f"structured: ended by {choice['finish_reason']}: {choice['message']['content']!r}"
    try:
        msgspec.json.decode(choice["message"]["content"], type=Person)
    except msgspec.DecodeError as error:
        return f"structured: {error}: {choice['message']['content']!r}"
    return ""


KINDS = (_sampled, _scored, _structured)
