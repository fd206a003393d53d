"""Fetching one file over HTTP: resumed where it broke off, checked before it counts."""

from __future__ import annotations

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from drivetrain.errors import ModelError
from drivetrain.version import __version__
from drivetrain_server.pull.choice import RemoteFile

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0
TRIES = 5
PAUSE_S = 1.0
Advance = Callable[[int], None]
"""Told how many bytes were added; negative where a file begins anew."""


class Unreachable(ModelError):
    """The other side cannot be reached, or broke off more often than is tried."""


class Refused(ModelError):
    """The other side answered with an error. `status` is its HTTP status."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never to plain HTTP from HTTPS, and takes the token to no other host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme == "https" and new.scheme != "https"):
            raise ModelError(f"{old.netloc} redirects to {newurl[:200]}, which is not safe; nothing was fetched")
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and new.netloc != old.netloc:
            request.remove_header("Authorization")
        return request


def open_url(url: str, token: str | None, *, begin: int = 0) -> http.client.HTTPResponse:
    """Send a GET, from byte `begin` on.

    Raises:
        Refused: an HTTP error.
        Unreachable: no answer.
    """
    headers = {"User-Agent": f"drivetrain/{__version__}", "Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    if begin:
        headers["Range"] = f"bytes={begin}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        return urllib.request.build_opener(_Redirects()).open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            raise Refused(f"{url}: answered {error.code} {error.reason}", status=error.code) from error
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable(f"{url}: {getattr(error, 'reason', None) or error}") from error


def fetch(url: str, file: RemoteFile, target: Path, advance: Advance, *, token: str | None = None) -> None:
    """Bring `file` to `target`. What an earlier try left in `target` with the suffix `.part` is gone on with.

    Raises:
        Refused: an HTTP error other than an overloaded server's.
        Unreachable: given up after five tries without any progress.
        ModelError: the content has another digest or length; it is deleted.
    """
    part = target.with_name(target.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    advance(part.stat().st_size if part.exists() else 0)
    tries = 0
    while (have := part.stat().st_size if part.exists() else 0) < file.num_bytes or not part.exists():
        try:
            _continue(url, file, part, advance, token)
            tries = tries if (part.stat().st_size <= have) else 0
        except Refused as error:
            if error.status == 416:
                part.unlink(missing_ok=True)
                advance(-have)
            elif error.status not in (429, 500, 502, 503, 504):
                raise
            tries = _next_try(tries, error)
        except Unreachable as error:
            now = part.stat().st_size if part.exists() else 0
            tries = _next_try(0 if now > have else tries, error)
    _check(part, file)
    part.replace(target)


def _next_try(tries: int, error: ModelError) -> int:
    if tries + 1 >= TRIES:
        raise error
    time.sleep(PAUSE_S * 2**tries)
    return tries + 1


def _continue(url: str, file: RemoteFile, part: Path, advance: Advance, token: str | None) -> None:
    have = part.stat().st_size if part.exists() else 0
    with open_url(url, token, begin=have) as answer, part.open("ab") as out:
        if have and answer.status != http.client.PARTIAL_CONTENT:
            out.truncate(0)
            advance(-have)
            have = 0
        try:
            while chunk := answer.read(CHUNK_BYTES):
                have += len(chunk)
                if have > file.num_bytes:
                    raise _wrong(part, file, f"more than {file.num_bytes} bytes")
                out.write(chunk)
                advance(len(chunk))
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{url}: broke off after {have} of {file.num_bytes} bytes: {error}") from error
        out.flush()
        os.fsync(out.fileno())
    if have < file.num_bytes:
        raise Unreachable(f"{url}: ended after {have} of {file.num_bytes} bytes")


def _check(part: Path, file: RemoteFile) -> None:
    sha256 = hashlib.sha256()
    git = hashlib.sha1(b"blob %d\0" % file.num_bytes, usedforsecurity=False)
    num_bytes = part.stat().st_size
    if num_bytes != file.num_bytes:
        raise _wrong(part, file, f"{num_bytes} bytes instead of {file.num_bytes}")
    with part.open("rb") as content:
        while chunk := content.read(CHUNK_BYTES):
            sha256.update(chunk)
            git.update(chunk)
    if file.sha256 is not None and sha256.hexdigest() != file.sha256:
        raise _wrong(part, file, f"the sha256 {sha256.hexdigest()}, expected {file.sha256}")
    if file.sha256 is None and file.git_sha1 is not None and git.hexdigest() != file.git_sha1:
        raise _wrong(part, file, f"the git id {git.hexdigest()}, expected {file.git_sha1}")


def _wrong(part: Path, file: RemoteFile, got: str) -> ModelError:
    part.unlink(missing_ok=True)
    return ModelError(f"{file.path}: what arrived has {got}; it was deleted, try again")
