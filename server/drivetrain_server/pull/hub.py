"""Repositories of a model hub that speaks Hugging Face's HTTP interface."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast
from urllib.parse import quote, urlsplit

from drivetrain.errors import ConfigError, ModelError, ModelNotFound
from drivetrain_server.pull.choice import RemoteFile
from drivetrain_server.pull.transfer import Refused, Unreachable, open_url

DEFAULT_ENDPOINT = "https://huggingface.co"
MAX_LIST_BYTES = 32 << 20
MAX_TOKEN_BYTES = 4096
_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""It becomes part of a path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A repository at one commit, so that no file changes while others are fetched."""

    name: str
    commit: str
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """Where models are fetched from.

    Raises:
        ConfigError: the address is not HTTPS, and not this machine either.
    """

    endpoint: str = DEFAULT_ENDPOINT
    token: str | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.endpoint)
        local = parts.hostname in ("127.0.0.1", "localhost", "::1")
        if not (parts.scheme == "https" or (parts.scheme == "http" and local)):
            raise ConfigError(f'HF_ENDPOINT: got "{self.endpoint}", expected an https:// address')

    def find(self, name: str, revision: str) -> Repository:
        """The files of a repository at a branch, tag or commit.

        Raises:
            ModelNotFound: there is no such repository or revision, or it is private.
            ModelError: it needs a token, the hub cannot be reached, or answers with something else.
        """
        url = f"{self.endpoint}/api/models/{quote(name)}/revision/{quote(revision, safe='')}?blobs=true"
        try:
            with open_url(url, self.token) as answer:
                listed = json.loads(answer.read(MAX_LIST_BYTES))
        except Refused as error:
            raise self._refused(name, revision, error) from error
        except Unreachable as error:
            raise ModelError(
                f"the hub cannot be reached ({error}); where there is no way to it, `drivetrain pull FOLDER` takes a "
                f"model that was brought here otherwise, and HF_ENDPOINT names a mirror"
            ) from error
        except ValueError as error:
            raise ModelError(f"{url}: the answer is not JSON; is HF_ENDPOINT a model hub?") from error
        found = cast("dict[str, object]", listed) if isinstance(listed, dict) else {}
        commit, siblings = found.get("sha"), found.get("siblings")
        if not (isinstance(commit, str) and _COMMIT.fullmatch(commit) and isinstance(siblings, list)):
            raise ModelError(f"{url}: the answer lists no files; is HF_ENDPOINT a model hub?")
        return Repository(name=name, commit=commit, files=tuple(map(_file, cast("list[object]", siblings))))

    def url(self, repository: Repository, file: RemoteFile) -> str:
        """Where a file's content is."""
        return f"{self.endpoint}/{quote(repository.name)}/resolve/{repository.commit}/{quote(file.path)}"

    def _refused(self, name: str, revision: str, error: Refused) -> ModelError:
        if error.status == 404:
            return ModelNotFound(f"{self.endpoint} has no model {name!r} with the revision {revision!r}")
        if error.status in (401, 403):
            own = "the token in HF_TOKEN may not read it" if self.token else "it may be private or ask for consent"
            return ModelNotFound(
                f"{self.endpoint} does not let us read {name!r}: no such model, or {own}; accept its terms on its page "
                f"and set HF_TOKEN"
            )
        return ModelError(str(error))


def hub_of(environment: Mapping[str, str]) -> Hub:
    """The hub that `HF_ENDPOINT` names, with the token of `HF_TOKEN` or of the file that the hub's own tools keep."""
    token = environment.get("HF_TOKEN")
    if not token:
        home = environment.get("HF_HOME") or os.path.join("~", ".cache", "huggingface")
        kept = Path(home).expanduser() / "token"
        token = kept.read_text(encoding="utf-8")[:MAX_TOKEN_BYTES].strip() if kept.is_file() else None
    endpoint = environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT
    return Hub(endpoint=endpoint.rstrip("/"), token=token or None)


def _file(entry: object) -> RemoteFile:
    match entry:
        case {"rfilename": str(path), "lfs": {"sha256": str(sha256), "size": int(size)}}:
            return RemoteFile(path=_safe(path), num_bytes=size, sha256=sha256)
        case {"rfilename": str(path), "blobId": str(blob), "size": int(size)}:
            return RemoteFile(path=_safe(path), num_bytes=size, git_sha1=blob)
        case _:
            raise ModelError(f"the hub lists a file without size or digest: {str(entry)[:200]}")


def _safe(path: str) -> str:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or "\\" in path or "\0" in path:
        raise ModelError(f"the hub lists a file outside its repository: {path[:200]!r}")
    return path
