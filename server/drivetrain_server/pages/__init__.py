"""The pages for browsers: static files, read once, served with a policy that lets nothing else run.

Each file of `static` is plain HTML, CSS or a JavaScript module, written by hand and sent as it is: no build, no
dependency, nothing from another host.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.resources import files

from fastapi import FastAPI, Request, Response

from drivetrain_server.errors import HttpError

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGES = {"/": "index.html", "/playground": "playground.html", "/reference": "reference.html"}
FOLDER = "/pages/"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticFile:
    """A file as it is sent. `etag` changes with its bytes."""

    body: bytes
    media_type: str
    etag: str

    def response(self, request: Request) -> Response:
        """The file, or 304 where the browser has it already."""
        headers = HEADERS | {"etag": self.etag}
        if request.headers.get("if-none-match") == self.etag:
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers=headers, media_type=self.media_type)


def static_files() -> dict[str, StaticFile]:
    """Every file of the pages, by name."""
    found: dict[str, StaticFile] = {}
    for entry in files(__name__).joinpath("static").iterdir():
        media_type = MEDIA_TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            body = entry.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
            found[entry.name] = StaticFile(body=body, media_type=media_type, etag=etag)
    return found


def is_page(path: str) -> bool:
    """Whether a path is one of the pages' own, which hold nothing secret and so need no key."""
    return path in PAGES or path.startswith(FOLDER)


def wants_page(request: Request) -> bool:
    """Whether the client asks for HTML before anything else, as browsers do."""
    return request.headers.get("accept", "").split(",", 1)[0].split(";", 1)[0].strip() == "text/html"


def add_pages(app: FastAPI, index: str) -> None:
    """Serve the pages; `/` answers clients that are no browsers with the text `index`."""
    known = static_files()

    async def root(request: Request) -> Response:
        if wants_page(request):
            response = known[PAGES["/"]].response(request)
        else:
            response = Response(index, media_type="text/plain; charset=utf-8")
        response.headers["vary"] = "accept"
        return response

    def page(name: str) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return known[name].response(request)

        return answer

    async def part(name: str, request: Request) -> Response:
        if name not in known or name.endswith(".html"):
            raise HttpError(404, f"there is no file {FOLDER}{name[:100]}", code="unknown_route")
        return known[name].response(request)

    app.add_api_route("/", root, include_in_schema=False)
    for path in sorted(PAGES.keys() - {"/"}):
        app.add_api_route(path, page(PAGES[path]), include_in_schema=False)
    app.add_api_route(f"{FOLDER}{{name}}", part, include_in_schema=False)
