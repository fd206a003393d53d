"""pydantic-ai: text over Chat Completions and Responses, and a structured answer by a tool call."""

from __future__ import annotations

from city import MAX_TOKENS, MODEL, QUESTION, City, report, server_url
from pydantic_ai import Agent, ModelSettings
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=f"{server_url()}/v1", api_key="none")
settings = ModelSettings(temperature=0, max_tokens=MAX_TOKENS)
chat, responses = (kind(MODEL, provider=provider) for kind in (OpenAIChatModel, OpenAIResponsesModel))
report(
    chat=Agent(chat, model_settings=settings).run_sync(QUESTION).output,
    responses=Agent(responses, model_settings=settings).run_sync(QUESTION).output,
    tool=Agent(chat, model_settings=settings, output_type=City).run_sync(QUESTION).output.model_dump(),
)
