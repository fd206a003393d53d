"""What a model's vocabulary and context leave room for."""

from __future__ import annotations

from collections.abc import Collection

from drivetrain.errors import PromptTooLong, RequestError
from drivetrain.messages import EngineInfo


def check_token_ids(name: str, ids: Collection[int], vocab_size: int) -> None:
    """Refuse ids that the model has no token for.

    Args:
        name: the field that they came in.

    Raises:
        RequestError: names the field and the first such id.
    """
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        wrong = next(token_id for token_id in ids if not 0 <= token_id < vocab_size)
        raise RequestError(f"{name}: token ids are 0 to {vocab_size - 1}, got {wrong}", param=name)


def check_answer_fits(info: EngineInfo, num_prompt: int, max_tokens: int | None) -> None:
    """Refuse a prompt that leaves less room than the answer may need.

    Args:
        max_tokens: of the answer; None is what room there is, at least one.

    Raises:
        PromptTooLong: prompt and answer do not fit into the context.
    """
    wanted = 1 if max_tokens is None else max_tokens
    if num_prompt + wanted > info.max_model_len:
        answer = "an answer" if max_tokens is None else f"max_tokens of {max_tokens}"
        raise PromptTooLong(
            f"the context has {info.max_model_len} tokens; {num_prompt} of the prompt and {answer} do not fit;"
            " shorten the prompt or lower max_tokens",
            param="max_tokens" if num_prompt < info.max_model_len else "prompt",
        )


def check_input_fits(info: EngineInfo, num_input: int) -> None:
    """Refuse an input to embed that is longer than the context.

    Raises:
        PromptTooLong: tells both lengths.
    """
    if num_input > info.max_model_len:
        raise PromptTooLong(
            f"the context has {info.max_model_len} tokens, the input has {num_input}; shorten it", param="input"
        )
