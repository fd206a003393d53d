"""Whether a request can ever run within the limits, and how long it may become."""

from __future__ import annotations

from drivetrain.errors import PromptTooLong, RequestError
from drivetrain.request import MAX_PRIORITY, Request
from drivetrain.scheduling.limits import SchedulerLimits


def length_limit(request: Request, limits: SchedulerLimits) -> int:
    """Tokens, prompt included, at which a request ends; one that is pooled ends before, with its prompt.

    Raises:
        PromptTooLong: the prompt leaves no room for an answer.
        RequestError: its prompt, priority or length could never be served.
    """
    if request.num_prompt == 0:
        raise RequestError("prompt: expected at least one token, got none", param="prompt")
    if not -MAX_PRIORITY <= request.priority <= MAX_PRIORITY:
        raise RequestError(
            f"priority: expected {-MAX_PRIORITY} to {MAX_PRIORITY}, got {request.priority}", param="priority"
        )
    most = min(request.max_total, limits.max_model_len)
    return _answered(request, limits, most) if request.pooling is None else _pooled(request, limits, most)


def check_fork(request: Request, parent: Request) -> None:
    """Refuse a fork that cannot take over what its parent computes.

    Raises:
        RequestError: another prompt, or another salt.
    """
    same = request.prompt_ids is parent.prompt_ids or request.prompt_ids == parent.prompt_ids
    if not same or request.salt != parent.salt:
        raise RequestError(f"parent: {parent.request_id!r} has another prompt or salt", param="n")


def _answered(request: Request, limits: SchedulerLimits, most: int) -> int:
    num_prompt, max_tokens = request.num_prompt, request.params.max_tokens
    if num_prompt >= most:
        raise PromptTooLong(
            f"prompt: {num_prompt} tokens leave no room for an answer in a context of {most} tokens; shorten it",
            param="prompt",
        )
    limit = most if max_tokens is None else min(most, num_prompt + max_tokens)
    # The KV of the very last token is never needed.
    pages, total = -(-(limit - 1) // limits.page_size), limits.num_usable_pages
    if pages > total:
        raise RequestError(
            f"max_tokens: {num_prompt} prompt tokens and up to {limit - num_prompt} more need {pages} KV pages of "
            f"{limits.page_size} tokens, the cache has {total}; lower max_tokens or give the cache more memory",
            param="max_tokens",
        )
    return limit


def _pooled(request: Request, limits: SchedulerLimits, most: int) -> int:
    num_prompt = request.num_prompt
    if num_prompt > most:
        raise PromptTooLong(
            f"prompt: {num_prompt} tokens are more than the context of {most}; shorten it", param="prompt"
        )
    pages, total = -(-num_prompt // limits.page_size), limits.num_usable_pages
    if pages > total:
        raise RequestError(
            f"prompt: {num_prompt} tokens need {pages} KV pages of {limits.page_size} tokens, the cache has {total}; "
            "shorten it or give the cache more memory",
            param="prompt",
        )
    return num_prompt + 1
