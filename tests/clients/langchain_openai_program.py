"""langchain-openai: chat, stream, Responses, embeddings, a structured answer and a tool call."""

from __future__ import annotations

from typing import Any

from city import MAX_TOKENS, MODEL, QUESTION, City, report, server_url
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

options: dict[str, Any] = {"model": MODEL, "base_url": f"{server_url()}/v1", "api_key": "none", "max_retries": 0}
chat = ChatOpenAI(temperature=0, max_tokens=MAX_TOKENS, **options)
responses = ChatOpenAI(temperature=0, max_tokens=MAX_TOKENS, use_responses_api=True, **options)
embeddings = OpenAIEmbeddings(check_embedding_ctx_length=False, **options)
[call] = chat.bind_tools([City], tool_choice="City", parallel_tool_calls=False).invoke(QUESTION).tool_calls
report(
    chat=chat.invoke(QUESTION).text,
    stream="".join(chunk.text for chunk in chat.stream(QUESTION)),
    responses=responses.invoke(QUESTION).text,
    embedding_sizes=[len(vector) for vector in embeddings.embed_documents(["a", "b"])],
    schema=chat.with_structured_output(City, method="json_schema").invoke(QUESTION).model_dump(),
    tool=call["args"],
)
