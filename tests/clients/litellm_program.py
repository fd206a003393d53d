"""litellm over three protocols: chat and stream as OpenAI, Anthropic and Ollama have them."""

from __future__ import annotations

from typing import Any

import litellm
from city import MAX_TOKENS, MODEL, QUESTION, report, server_url

answers: dict[str, Any] = {}
for kind, base in (("openai", f"{server_url()}/v1"), ("anthropic", server_url()), ("ollama_chat", server_url())):
    options: dict[str, Any] = {
        "model": f"{kind}/{MODEL}",
        "api_base": base,
        "api_key": "none",
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": MAX_TOKENS,
        "num_retries": 0,
    }
    whole = litellm.completion(**options)
    chunks = litellm.completion(stream=True, **options)
    answers[kind] = {
        "chat": whole.choices[0].message.content,
        "completion_tokens": whole.usage.completion_tokens,
        "stream": "".join(chunk.choices[0].delta.content or "" for chunk in chunks),
    }
report(**answers)
