"""From the start of the server's process to the first token over HTTP, with empty compile caches and with full ones.

The files of the program itself may be in the page cache either way.
"""

from __future__ import annotations

import json
import shutil

from device_parts.serving import Server
from device_parts.settings import Record, Settings

PROMPT = list(range(1000, 1064))
WARM_STARTS = 2


def run(settings: Settings, record: Record) -> None:
    """One cold start, then warm ones on the caches that it filled."""
    record.put(model=settings.http_model)
    caches = settings.folder("caches")
    shutil.rmtree(caches)
    caches.mkdir()
    for kind in ("cold", *("warm",) * WARM_STARTS):
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
