"""A tokenizer of bytes, so that every test can see what each token is."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence

from drivetrain.errors import TemplateError
from drivetrain.frontend import Json, Message
from drivetrain.sampling import SamplingParams

END = 256
BEGIN = 257
VOCAB_SIZE = 300
SPECIAL = {END: "<|end|>", BEGIN: "<|begin|>"}


class ByteTokenizer:
    """Ids 0 to 255 are bytes; BEGIN goes before a prompt."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [BEGIN] * add_special_tokens + list(text.encode())

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return b"".join(b"" if skip_special_tokens and i in SPECIAL else self.token_bytes(i) for i in ids).decode(
            "utf-8", "replace"
        )

    def token_bytes(self, token_id: int) -> bytes:
        return SPECIAL[token_id].encode() if token_id in SPECIAL else bytes([token_id]) if token_id < 256 else b""


class LineTemplate:
    """`role: content` lines; reads the variable `enable_thinking` and refuses messages with the text "refuse me"."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        kwargs: Mapping[str, Json] | None = None,
    ) -> str:
        if unread := set(kwargs or {}) - {"enable_thinking"}:
            raise TemplateError(
                f"chat_template_kwargs has {unread}, which it does not read", param="chat_template_kwargs"
            )
        lines = [f"{message['role']}: {_text(message['content'])}" for message in messages]
        if any(line.endswith("refuse me") for line in lines):
            raise TemplateError("messages: the template refused them", param="messages")
        lines += [f"{name}={value}" for name, value in (kwargs or {}).items()]
        return "\n".join(lines) + ("\nassistant: " if add_generation_prompt else "" if continue_final_message else "\n")


def _text(content: Json) -> str:
    if isinstance(content, list):
        return "|".join(str(part["text"]) for part in content if isinstance(part, dict))
    return str(content)


class ByteText:
    """The incremental detokenizer of `ByteTokenizer`."""

    def __init__(self, params: SamplingParams) -> None:
        self.stop_string: str | None = None
        self._params = params
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token_id: int) -> str:
        raw = SPECIAL[token_id].encode() if token_id in SPECIAL and not self._params.skip_special_tokens else b""
        self._held += self._decoder.decode(bytes([token_id]) if token_id < 256 else raw)
        for stop in self._params.stop:
            at = self._held.find(stop)
            if at >= 0:
                self.stop_string = stop
                return self._held[: at + len(stop) if self._params.include_stop_str_in_output else at]
        keep = max(
            (size for stop in self._params.stop for size in range(1, len(stop)) if self._held.endswith(stop[:size])),
            default=0,
        )
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def finish(self) -> str:
        return self._held + self._decoder.decode(b"", final=True)
