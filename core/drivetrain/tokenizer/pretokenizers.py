# ruff: noqa: RUF001 - the look-alike letters are what the patterns match
"""How byte-level families split text before merging, by the name that GGUF files give it.

A merge never crosses a split, so a wrong split gives other tokens than the model was trained on. The name stands in
`tokenizer.ggml.pre`; one that is not listed is refused rather than guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drivetrain.errors import TokenizerError

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer
    from tokenizers.pre_tokenizers import PreTokenizer

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_QWEN2 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{{end}}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{{end}}"
    rf"|\p{{N}}{{digits}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"
)
_TEKKEN = _WORDS.replace("{end}", "").replace("{digits}", "")
_GPT4O = _WORDS.replace("{end}", f"{_CONTRACTION}?").replace("{digits}", "{1,3}")
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|"
    + _TAIL
)
_CJK = "[一-龥぀-ゟ゠-ヿ]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class PreTokenization:
    """Splits applied one after the other; text is then spelt in byte-level letters."""

    patterns: tuple[str, ...] = ()
    """Regular expressions; each match is a piece of its own."""
    single_digits: bool = False
    """Every digit is a piece of its own."""
    contiguous_punctuation: bool = False
    """Runs of punctuation are pieces of their own."""
    gpt2_words: bool = False
    """GPT-2's own pattern, after the others."""
    digit_triples: bool = False
    """Runs of digits stand alone, cut after each third."""
    nfc: bool = False
    """Text is brought into Unicode's composed form first."""
    ignore_merges: bool = False
    """A piece that is in the vocabulary is taken whole."""
    add_bos: bool = False
    """A begin token is put first where the file does not say."""


_GPT2 = PreTokenization(gpt2_words=True)
_GPT2_NFC = PreTokenization(gpt2_words=True, nfc=True)
_DIGITS = PreTokenization(single_digits=True, gpt2_words=True)
_LLAMA3_SPLIT = PreTokenization(patterns=(_LLAMA3,))
_FALCON = PreTokenization(contiguous_punctuation=True, gpt2_words=True, digit_triples=True)

PRE_TOKENIZATIONS: Mapping[str, PreTokenization] = {
    "default": _FALCON,
    "falcon": _FALCON,
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "jais": _GPT2,
    "mpt": _GPT2_NFC,
    "olmo": _GPT2_NFC,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "codeshell": _DIGITS,
    "command-r": PreTokenization(single_digits=True, gpt2_words=True, nfc=True),
    "llama-bpe": PreTokenization(patterns=(_LLAMA3,), ignore_merges=True, add_bos=True),
    "llama3": PreTokenization(patterns=(_LLAMA3,), ignore_merges=True, add_bos=True),
    "llama-v3": PreTokenization(patterns=(_LLAMA3,), ignore_merges=True, add_bos=True),
    "dbrx": _LLAMA3_SPLIT,
    "smaug-bpe": _LLAMA3_SPLIT,
    "chatglm-bpe": _LLAMA3_SPLIT,
    "glm4": _LLAMA3_SPLIT,
    "qwen2": PreTokenization(patterns=(_QWEN2,), nfc=True),
    "stablelm2": PreTokenization(patterns=(_QWEN2,), nfc=True),
    "deepseek-r1-qwen": PreTokenization(patterns=(_QWEN2,), nfc=True),
    "tekken": PreTokenization(patterns=(_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": PreTokenization(patterns=(_GPT4O,), ignore_merges=True),
    "llama4": PreTokenization(patterns=(_GPT4O,), add_bos=True),
    "deepseek-v3": PreTokenization(patterns=(r"\p{N}{1,3}", _CJK, _DEEPSEEK3)),
    "deepseek-coder": PreTokenization(
        patterns=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"), single_digits=True
    ),
    "bloom": PreTokenization(patterns=(r" ?[^(\s|.,!?…。，、।۔،)]+",)),
    "poro-chat": PreTokenization(patterns=(r" ?[^(\s|.,!?…。，、।۔،)]+",)),
}


def find_pre_tokenization(name: str, where: str) -> PreTokenization:
    """Raises: TokenizerError: the name is not known."""
    found = PRE_TOKENIZATIONS.get(name)
    if found is None:
        raise TokenizerError(
            f"{where}: tokenizer.ggml.pre is {name[:40]!r}, which is not known, so text would be split wrongly; "
            f"known are {', '.join(sorted(PRE_TOKENIZATIONS))}; use the model's safetensors folder"
        )
    return found


def build_pre_tokenizer(splits: PreTokenization) -> PreTokenizer:
    """The splits as one pre-tokenizer of the tokenizers library, ending in byte-level letters."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[PreTokenizer] = []
    if splits.contiguous_punctuation:
        steps.append(pre_tokenizers.Punctuation("contiguous"))
    steps.extend(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splits.patterns)
    if splits.single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splits.gpt2_words))
    if splits.digit_triples:
        steps.append(pre_tokenizers.Digits(individual_digits=False))
        steps.append(pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"))
    return pre_tokenizers.Sequence(steps)


def build_normalizer(splits: PreTokenization) -> Normalizer | None:
    """The normalizer that goes with the splits, if any."""
    from tokenizers import normalizers

    return normalizers.NFC() if splits.nfc else None
