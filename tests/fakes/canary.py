"""A stream that must not notice what others do to the server."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

import httpx

from fakes.serve_process import ServeProcess, sse_events

BODY = {
    "prompt": "The quick brown fox",
    "max_tokens": 60,
    "temperature": 0.9,
    "top_p": 0.9,
    "seed": 3,
    "ignore_eos": True,
    "return_token_ids": True,
    "stream": True,
}


class Canary:
    """`with Canary(server):` streams one seeded request over and over, and compares each answer with one alone."""

    def __init__(self, server: ServeProcess) -> None:
        self._server = server
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="canary")
        self._answers: list[tuple[str, list[int]]] = []
        self._failure: Exception | None = None

    def __enter__(self) -> Self:
        self._alone = self._ask(self._server.http)
        assert len(self._alone[1]) == BODY["max_tokens"]
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if error is None:
            if self._failure is not None:
                raise self._failure
            assert self._answers
            assert all(answer == self._alone for answer in self._answers)

    def _run(self) -> None:
        with httpx.Client(base_url=self._server.url, timeout=60) as http:
            try:
                while not self._done.is_set() or not self._answers:
                    self._answers.append(self._ask(http))
            except Exception as error:
                self._failure = error

    def _ask(self, http: httpx.Client) -> tuple[str, list[int]]:
        text, token_ids = "", list[int]()
        with http.stream("POST", "/v1/completions", json=BODY | {"model": self._server.name}) as answer:
            assert answer.status_code == 200
            for event in sse_events(answer):
                choice = event["choices"][0]
                text += choice["text"]
                token_ids += choice.get("token_ids", [])
        return text, token_ids
