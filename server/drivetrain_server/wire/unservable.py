"""Fields that are known elsewhere and that this server cannot serve: each is a 400, never ignored in silence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from drivetrain_server.errors import HttpError

IGNORED = (
    "metadata",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_retention",
    "safety_identifier",
    "store",
    "user",
    "verbosity",
)
"""Known fields that are accepted and change nothing: notes to the operator, and hints that promise nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unservable:
    """Why a field is refused, and the values that ask for nothing and are let through. null always is."""

    reason: str
    harmless: tuple[object, ...] = ()


_AUDIO = "only text is served; leave it out"
_HINT = "this server does nothing with it; leave it out"
_SEARCH = "beam search is not served; use n or best_of"

COMMON: dict[str, Unservable] = {
    "guided_decoding_backend": Unservable(reason="there is one for all grammars; leave it out", harmless=("auto",)),
    "guided_whitespace_pattern": Unservable(reason="JSON is laid out freely; write a regex instead"),
    "structural_tag": Unservable(reason="send it in response_format or structured_outputs"),
    "use_beam_search": Unservable(reason=_SEARCH, harmless=(False,)),
    "length_penalty": Unservable(reason=_SEARCH, harmless=(1, 1.0)),
    "early_stopping": Unservable(reason=_SEARCH, harmless=(False,)),
    "truncate_prompt_tokens": Unservable(reason="prompts are never cut; shorten it before sending"),
    "spaces_between_special_tokens": Unservable(reason=_HINT, harmless=(True,)),
    "return_tokens_as_token_ids": Unservable(reason="use return_token_ids instead", harmless=(False,)),
    "logits_processors": Unservable(reason="code in requests is never run"),
    "allowed_token_ids": Unservable(reason="use logit_bias to favour or forbid tokens"),
    "kv_transfer_params": Unservable(reason=_HINT),
    "vllm_xargs": Unservable(reason=_HINT),
}

COMPLETIONS: dict[str, Unservable] = COMMON | {
    "suffix": Unservable(reason="this model cannot fill in text before a suffix; leave it out", harmless=("",)),
    "prompt_embeds": Unservable(reason="send text or token ids as prompt"),
}

EMBEDDINGS: dict[str, Unservable] = {
    "messages": Unservable(reason="send the text as input"),
    "truncate_prompt_tokens": Unservable(reason="inputs are never cut; shorten it before sending"),
    "truncation_side": Unservable(reason="inputs are never cut; shorten it before sending"),
    "input_type": Unservable(reason="write the prefix that the model wants into the input"),
    "embed_dtype": Unservable(reason="embeddings are float32", harmless=("float32",)),
    "endianness": Unservable(reason="base64 is little-endian", harmless=("native", "little")),
    "softmax": Unservable(reason=_HINT, harmless=(False,)),
}

CHAT: dict[str, Unservable] = COMMON | {
    "functions": Unservable(reason="use tools instead", harmless=([],)),
    "function_call": Unservable(reason="use tool_choice instead", harmless=("none", "auto")),
    "audio": Unservable(reason=_AUDIO),
    "modalities": Unservable(reason=_AUDIO, harmless=(["text"],)),
    "web_search_options": Unservable(reason="this server does not search the web; leave it out"),
    "reasoning": Unservable(reason="use reasoning_effort instead"),
    "thinking": Unservable(
        reason="use reasoning_effort, or chat_template_kwargs with the variable of this model's template"
    ),
    "service_tier": Unservable(reason="there is one tier", harmless=("auto", "default")),
    "moderation": Unservable(reason=_HINT),
    "chat_template": Unservable(reason="templates in requests are never run; the operator sets one for the model"),
    "documents": Unservable(reason="put documents into a message"),
    "mm_processor_kwargs": Unservable(reason=_AUDIO),
    "echo": Unservable(reason="use the completions route for echo", harmless=(False,)),
    "best_of": Unservable(reason="use n, or best_of on the completions route", harmless=(1,)),
}


MESSAGES: dict[str, Unservable] = {
    "container": Unservable(reason="this server runs no code"),
    "mcp_servers": Unservable(reason="this server calls no other servers", harmless=([],)),
    "context_management": Unservable(reason="the conversation is taken as it is; edit it before sending"),
    "inference_geo": Unservable(reason=_HINT),
    "service_tier": Unservable(reason="there is one tier", harmless=("auto", "standard_only")),
}


RESPONSES: dict[str, Unservable] = {
    "background": Unservable(reason="responses end with their connection", harmless=(False,)),
    "conversation": Unservable(reason="use previous_response_id, or send the conversation itself"),
    "prompt": Unservable(reason="templates in requests are never run; send instructions and input"),
    "max_tool_calls": Unservable(reason="this server runs no tools of its own"),
    "service_tier": Unservable(reason="there is one tier", harmless=("auto", "default")),
    "stream_options": Unservable(reason="events are never padded", harmless=({"include_obfuscation": False}, {})),
    "context_management": Unservable(reason="use truncation, or shorten the input"),
    "moderation": Unservable(reason=_HINT),
}

RETRIEVE: dict[str, Unservable] = {
    "stream": Unservable(reason="a kept response is complete; leave it out", harmless=("false",)),
    "starting_after": Unservable(reason="events are not kept; leave it out"),
    "include_obfuscation": Unservable(reason="events are never padded", harmless=("false",)),
}
"""Of the query for a kept response, whose values are texts."""

OLLAMA: dict[str, Unservable] = {
    "images": Unservable(reason=_AUDIO, harmless=([],)),
    "suffix": Unservable(reason="this model cannot fill in text before a suffix; leave it out", harmless=("",)),
    "template": Unservable(reason="templates in requests are never run", harmless=("",)),
    "context": Unservable(reason="send the conversation to /api/chat instead", harmless=([],)),
}

_PENALTY = "repetition, presence and frequency penalties are served in its place"
OLLAMA_OPTIONS: dict[str, Unservable] = {
    "options.mirostat": Unservable(reason=_PENALTY, harmless=(0,)),
    "options.mirostat_eta": Unservable(reason="mirostat is not served; leave it out", harmless=(0.1,)),
    "options.mirostat_tau": Unservable(reason="mirostat is not served; leave it out", harmless=(5, 5.0)),
    "options.typical_p": Unservable(reason="use top_p or min_p", harmless=(1, 1.0)),
    "options.tfs_z": Unservable(reason="use top_p or min_p", harmless=(1, 1.0)),
    "options.penalize_newline": Unservable(reason="newlines are tokens like others", harmless=(True,)),
    "options.repeat_last_n": Unservable(reason="penalties count the whole text; send -1", harmless=(-1, 64)),
}


def refuse_unservable(body: Mapping[str, object], table: Mapping[str, Unservable]) -> None:
    """Refuse the first field of `body` that is known and cannot be served.

    Raises:
        HttpError: 400 that names it.
    """
    for name in body.keys() & table.keys():
        value, rule = body[name], table[name]
        if value is None or any(type(value) is type(other) and value == other for other in rule.harmless):
            continue
        raise HttpError(400, f"{name}: {rule.reason}", param=name, code="unsupported_parameter")
