"""instructor over the official client of OpenAI: an answer as an object, by a tool call and by a schema."""

from __future__ import annotations

from typing import Any

import instructor
import openai
from city import MAX_TOKENS, MODEL, QUESTION, City, report, server_url


def ask(mode: instructor.Mode, **fields: Any) -> dict[str, str]:
    with openai.OpenAI(base_url=f"{server_url()}/v1", api_key="none") as inner:
        client = instructor.from_openai(inner, mode=mode)
        found = client.chat.completions.create(
            model=MODEL,
            response_model=City,
            messages=[{"role": "user", "content": QUESTION}],
            temperature=0,
            max_tokens=MAX_TOKENS,
            max_retries=0,
            **fields,
        )
    return found.model_dump()


report(tool=ask(instructor.Mode.TOOLS, parallel_tool_calls=False), schema=ask(instructor.Mode.JSON_SCHEMA))
