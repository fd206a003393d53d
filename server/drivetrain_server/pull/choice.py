"""Which files of a repository make a model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from drivetrain.errors import ModelError

TEXT_FILES = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|chat_template|"
    r"preprocessor_config|sentence_bert_config|modules|1_Pooling/config|[\w.-]+\.safetensors\.index)\.json|"
    r"merges\.txt|chat_template\.jinja|tokenizer\.model|spiece\.model|LICENSE[\w.]*|README\.md"
)
WEIGHTS = re.compile(r"(?!consolidated)[\w.-]+\.safetensors")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file of a repository or package, with the digest that its source states.

    Attributes:
        path: inside the repository, with `/`.
        sha256: of the content; None where only `git_sha1` is known.
        git_sha1: the id that git gives the content.
    """

    path: str
    num_bytes: int
    sha256: str | None = None
    git_sha1: str | None = None


def model_files(files: Sequence[RemoteFile], wanted: str, where: str) -> list[RemoteFile]:
    """The files to take: one .gguf file, or the safetensors with configuration and tokenizer.

    Args:
        wanted: part of a .gguf file's name, such as `Q4_K_M`; empty takes safetensors, else the only .gguf file.
        where: names the source in errors.

    Raises:
        ModelError: there is no such file, several, or no weights that can be read.
    """
    ggufs = [file for file in files if file.path.endswith(".gguf")]
    if wanted:
        return [_one(ggufs, wanted, where)]
    weights = [file for file in files if WEIGHTS.fullmatch(file.path)]
    if weights:
        if not any(file.path == "config.json" for file in files):
            raise ModelError(f"{where}: has weights but no config.json, so its architecture is unknown")
        return [*weights, *(file for file in files if TEXT_FILES.fullmatch(file.path))]
    if ggufs:
        return [_one(ggufs, "", where)]
    pickled = [file.path for file in files if file.path.endswith(PICKLES)]
    if pickled:
        raise ModelError(
            f"{where}: holds its weights only as {pickled[0]}, which can run code when it is read; Drivetrain reads "
            f"safetensors and GGUF, so look for a conversion"
        )
    raise ModelError(f"{where}: holds no .safetensors and no .gguf file")


def _one(ggufs: Sequence[RemoteFile], wanted: str, where: str) -> RemoteFile:
    exact = [file for file in ggufs if file.path == wanted]
    found = exact or [file for file in ggufs if wanted.lower() in file.path.lower()]
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.path for file in (found or ggufs)[:12]) or "none at all"
    if not found:
        raise ModelError(f"{where}: no .gguf file has {wanted!r} in its name; there are {names}")
    raise ModelError(f"{where}: {len(found)} .gguf files fit; pick one after a colon (NAME:Q4_K_M): {names}")
