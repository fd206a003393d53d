"""The begin and end tokens that an encoded text gets."""

from __future__ import annotations

import tokenizers


def surround(encoder: tokenizers.Tokenizer, begin: str | None, end: str | None) -> None:
    """Put the tokens `begin` and `end` around every text that `encoder` encodes; None leaves that side bare."""
    from tokenizers import processors

    around = [token for token in (begin, end) if token is not None]
    if not around:
        return
    encoder.post_processor = processors.TemplateProcessing(
        single=[*([begin] if begin else []), "$A", *([end] if end else [])],
        pair=None,
        special_tokens=[(token, encoder.token_to_id(token)) for token in dict.fromkeys(around)],
    )
