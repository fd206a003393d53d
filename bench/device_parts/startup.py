"""From the start of the server's process to the first token over HTTP, with empty compile caches and with full ones.

Where the caches are empty, processes help to compile; a cache that seems to hold a kernel keeps them away, so that
threads alone are timed beside them. The files of the program itself may be in the page cache either way.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from device_parts.serving import Server
from device_parts.settings import Record, Settings

PROMPT = list(range(1000, 1064))
COLD, THREADS_ALONE, WARM = "cold", "cold, threads alone", "warm"
STARTS = (THREADS_ALONE, COLD, THREADS_ALONE, COLD, WARM, WARM)
TINY_STARTS = (COLD, WARM, WARM)


def run(settings: Settings, record: Record) -> None:
    """Cold starts of both kinds in turn, then warm ones on the caches that the last one filled."""
    record.put(model=settings.http_model)
    caches = settings.folder("caches")
    for kind in TINY_STARTS if settings.tiny else STARTS:
        if kind != WARM:
            shutil.rmtree(caches)
            caches.mkdir()
        if kind == THREADS_ALONE:
            _seem_to_hold_a_kernel(caches / "triton_cache_dir")
        with Server(settings, caches=caches) as server:
            ready_s = server.wait_ready()
            token_s, ttft_s, tokens = server.first_token_s(PROMPT, 16)
            _, again_s, _ = server.first_token_s(PROMPT[::-1], 16)
        if tokens != 16:
            record.fail(f"{kind} start: the answer has {tokens} tokens, expected 16")
        phases = {phase["name"]: phase["elapsed_s"] for phase in server.phases}
        row = {"kind": kind, "ready_s": round(ready_s, 3), "first_token_s": round(token_s, 3)}
        row |= {"first_request_ttft_s": round(ttft_s, 4), "second_request_ttft_s": round(again_s, 4), "phases": phases}
        row |= {"cache_bytes": sum(path.stat().st_size for path in caches.rglob("*") if path.is_file())}
        print("START", json.dumps(row), flush=True)
        record.append("starts", row)


def _seem_to_hold_a_kernel(cache: Path) -> None:
    """Put an entry into Triton's cache that no kernel has."""
    entry = cache / "none"
    entry.mkdir(parents=True)
    (entry / "__grp__none.json").write_text("{}", encoding="utf-8")
