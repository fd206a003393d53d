"""A real tokenizer whose ids are bytes, so that every test can see what each token is, and a small chat template."""

from __future__ import annotations

from functools import cache

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors

from drivetrain.chat_template import ChatTemplate
from drivetrain.tokenizer import Tokenizer
from drivetrain.tokenizer.pieces import byte_level_alphabet
from drivetrain.tokenizer.tokenizer import TokenizerParts

END = 256
BEGIN = 257
VOCAB_SIZE = 300

TEMPLATE = """
{%- for message in messages -%}
{%- if message.content == 'refuse me' -%}{{ raise_exception('no') }}{%- endif -%}
{{ message.role }}: {{ message.content }}
{%- if not loop.last %}{{ '\\n' }}{% endif -%}
{%- endfor -%}
{%- if enable_thinking is defined %}{{ '\\n' }}thinking={{ enable_thinking }}{% endif -%}
{%- if add_generation_prompt %}{{ '\\n' }}assistant: {% endif -%}
"""


@cache
def byte_tokenizer(*added: str) -> Tokenizer:
    """Ids 0 to 255 are bytes; BEGIN goes before a prompt; `added` tokens, which are not special, follow behind."""
    backend = tokenizers.Tokenizer(models.BPE(vocab=byte_level_alphabet(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    backend.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|begin|>", special=True)])
    backend.add_tokens([AddedToken(text, normalized=False) for text in added])
    backend.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<|begin|> $A", special_tokens=[("<|begin|>", BEGIN)]
    )
    assert backend.token_to_id("<|end|>") == END
    return Tokenizer(backend, TokenizerParts(where="byte tokenizer", eos_ids=(END,)))


def line_template() -> ChatTemplate:
    """`role: content` lines; reads the variable `enable_thinking` and refuses the message "refuse me"."""
    return ChatTemplate({"default": TEMPLATE})
