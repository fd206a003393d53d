"""Tokenizers of Hugging Face model folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from drivetrain.config_files import read_json_file
from drivetrain.errors import ModelError, TokenizerError
from drivetrain.tokenizer.sentencepiece import SentencePieceModel, build_sentencepiece, read_sentencepiece_model
from drivetrain.tokenizer.surroundings import surround
from drivetrain.tokenizer.tokenizer import TokenizerParts

if TYPE_CHECKING:
    import tokenizers
    from tokenizers import AddedToken

MAX_TOKENIZER_BYTES = 256 << 20
_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_SENTENCEPIECE_NAMES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_BYTE_LEVEL_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast", "")


def read_folder(path: Path) -> tuple[tokenizers.Tokenizer, TokenizerParts]:
    """Encoder and everything else that a `Tokenizer` is made of.

    `tokenizer.json` is read where there is one; else a SentencePiece model; else `vocab.json` with `merges.txt`.

    Raises:
        TokenizerError: none of them, or one that cannot be read.
    """
    try:
        config = read_json_file(path / "tokenizer_config.json") or {}
        special_map = read_json_file(path / "special_tokens_map.json") or {}
    except ModelError as error:
        raise TokenizerError(str(error)) from error
    special = {**special_map, **{key: value for key, value in config.items() if value is not None}}
    model: SentencePieceModel | None = None
    source = _find(path, ("tokenizer.json", *_SENTENCEPIECE_NAMES, "vocab.json"))
    if source is None:
        raise TokenizerError(f"{path}: no tokenizer; expected tokenizer.json, tokenizer.model or vocab.json here")
    if source.name == "tokenizer.json":
        encoder = _from_json(source)
    elif source.name == "vocab.json":
        encoder = _from_vocab_and_merges(path, config)
    else:
        model = read_sentencepiece_model(source)
        encoder = build_sentencepiece(model, prefix_every_segment=config.get("legacy") is not False)
        special = {**_sentencepiece_roles(model), **special}
    _add_declared_tokens(encoder, config, source)
    roles = {role: text for role in _ROLES if (text := _token_text(special.get(role))) is not None}
    _add_special_tokens(encoder, special, roles)
    if source.name != "tokenizer.json":
        # tokenizer.json says itself what goes around a text; Transformers ignores the flags beside it, too.
        _set_begin_and_end(encoder, config, roles, adds_bos_by_default=model is not None)
    eos = encoder.token_to_id(roles["eos_token"]) if "eos_token" in roles else None
    parts = TokenizerParts(
        where=str(source),
        special_tokens=roles,
        eos_ids=() if eos is None else (eos,),
        chat_templates=_chat_templates(path, config),
        num_tokens=len(model.texts) if model else 0,
        doubles_leading_space=model is not None and model.add_prefix_space and config.get("legacy") is False,
    )
    return encoder, parts


def _find(path: Path, names: tuple[str, ...]) -> Path | None:
    return next((path / name for name in names if (path / name).is_file()), None)


def _from_json(source: Path) -> tokenizers.Tokenizer:
    import tokenizers

    if source.stat().st_size > MAX_TOKENIZER_BYTES:
        raise TokenizerError(f"{source}: larger than the {MAX_TOKENIZER_BYTES} bytes that a tokenizer may have")
    try:
        return tokenizers.Tokenizer.from_file(str(source))
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{source}: cannot be read as a tokenizer ({error}); download it again") from error


def _from_vocab_and_merges(path: Path, config: dict[str, Any]) -> tokenizers.Tokenizer:
    """GPT-2's own file format, which OPT and older folders still use."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    name = str(config.get("tokenizer_class") or "")
    if name not in _BYTE_LEVEL_CLASSES:
        raise TokenizerError(
            f"{path}: vocab.json belongs to {name}, of which the splitting rules are not known without tokenizer.json; "
            f"add the tokenizer.json of this model"
        )
    try:
        vocab, merges = str(path / "vocab.json"), str(path / "merges.txt")
        core = models.BPE.from_file(vocab, merges)  # pyright: ignore[reportUnknownMemberType] - untyped there
    except Exception as error:  # the library raises plain Exception
        raise TokenizerError(f"{path}: vocab.json and merges.txt cannot be read ({error}); download both") from error
    encoder = tokenizers.Tokenizer(core)
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=config.get("add_prefix_space") is True)
    encoder.decoder = decoders.ByteLevel()
    return encoder


def _sentencepiece_roles(model: SentencePieceModel) -> dict[str, Any]:
    ids = {"unk_token": model.unk_id, "bos_token": model.bos_id, "eos_token": model.eos_id, "pad_token": model.pad_id}
    return {role: text for role, token_id in ids.items() if (text := model.piece(token_id)) is not None}


def _token_text(value: object) -> str | None:
    """Text of a token that is given as a string or as an object with its content."""
    match value:
        case str():
            return value
        case {"content": str(content)}:
            return content
        case _:
            return None


def _added_token(value: object, *, special: bool) -> AddedToken | None:
    from tokenizers import AddedToken

    match value:
        case str():
            return AddedToken(value, special=special, normalized=not special)
        case {"content": str(content)}:
            rest = cast("dict[str, object]", value)
            flags = {key: rest.get(key) is True for key in ("single_word", "lstrip", "rstrip")}
            is_special = special or rest.get("special") is True
            normalized = rest.get("normalized", not is_special) is True
            return AddedToken(content, special=is_special, normalized=normalized, **flags)
        case _:
            return None


def _add_declared_tokens(encoder: tokenizers.Tokenizer, config: dict[str, Any], source: Path) -> None:
    """Tokens of `added_tokens_decoder`, whose flags win over those in tokenizer.json."""
    declared: object = config.get("added_tokens_decoder")
    if not isinstance(declared, dict):
        return
    tokens: dict[int, AddedToken] = {}
    for key, value in cast("dict[str, Any]", declared).items():
        token = _added_token(value, special=False) if key.isdecimal() else None
        if token is not None and token.content:
            tokens[int(key)] = token
    # All at once: each call rebuilds the matcher of every added token, and there may be thousands.
    encoder.add_tokens([tokens[key] for key in sorted(tokens)])  # pyright: ignore[reportUnknownMemberType] - untyped
    for token_id, token in tokens.items():
        got = encoder.token_to_id(token.content)
        if got != token_id:
            raise TokenizerError(
                f"{source.parent}: tokenizer_config.json gives {token.content!r} the id {token_id}, "
                f"{source.name} gives it {got}; the two files belong to different models"
            )


def _add_special_tokens(encoder: tokenizers.Tokenizer, special: dict[str, Any], roles: dict[str, str]) -> None:
    """Make every token that has a role, or is listed as special, one that text may spell out."""
    listed: list[object] = [special[role] for role in roles]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        extra: object = special.get(key)
        if isinstance(extra, dict):
            extra = list(cast("dict[str, object]", extra).values())
        if isinstance(extra, list):
            listed += cast("list[object]", extra)
    known = {token.content for token in encoder.get_added_tokens_decoder().values()}
    missing: dict[str, AddedToken] = {}
    for value in listed:
        token = _added_token(value, special=True)
        if token is not None and token.content and token.content not in known:
            missing.setdefault(token.content, token)
    encoder.add_special_tokens(list(missing.values()))  # pyright: ignore[reportUnknownMemberType] - untyped there


def _set_begin_and_end(
    encoder: tokenizers.Tokenizer, config: dict[str, Any], roles: dict[str, str], *, adds_bos_by_default: bool
) -> None:
    """Apply `add_bos_token` and `add_eos_token`."""
    bos = roles.get("bos_token") if config.get("add_bos_token", adds_bos_by_default) else None
    eos = roles.get("eos_token") if config.get("add_eos_token", False) else None
    surround(encoder, bos, eos)


def _chat_templates(path: Path, config: dict[str, Any]) -> dict[str, str]:
    templates: dict[str, str] = {}
    match config.get("chat_template"):
        case str(source):
            templates["default"] = source
        case [*entries]:
            for entry in entries:
                match entry:
                    case {"name": str(name), "template": str(source)}:
                        templates[name] = source
                    case _:
                        raise TokenizerError(
                            f"{path / 'tokenizer_config.json'}: a chat_template entry lacks name or template: "
                            f"{json.dumps(entry)[:80]}"
                        )
        case _:
            pass
    processor = read_json_file(path / "chat_template.json") or {}
    if isinstance(processor.get("chat_template"), str):
        templates["default"] = processor["chat_template"]
    for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = _read_text(file)
    if (path / "chat_template.jinja").is_file():
        templates["default"] = _read_text(path / "chat_template.jinja")
    return templates


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read ({error})") from error
