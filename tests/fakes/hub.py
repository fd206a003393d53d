"""A model hub on loopback: lists files and serves them, breaks off, redirects and lies when told to."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

COMMIT = "c0ffee" * 6 + "c0ff"
LARGE = (".safetensors", ".gguf")


class FakeHub:
    """`with FakeHub({"config.json": b"{}"}) as hub:`; `hub.url` is the endpoint, of the one repository `org/model`.

    Attributes:
        break_after: a content that is sent is cut after so many bytes, as often as `breaks` says.
        send: other contents than the listed ones.
        refuse: status of every answer to a listing; 0 is none.
        whole_only: a content is sent from its beginning, whatever range was asked for.
        elsewhere: contents are on this other host, by a redirect.
        asked: (path, Range, Authorization) of every request.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.send: dict[str, bytes] = {}
        self.break_after, self.breaks, self.refuse = 0, 0, 0
        self.whole_only = False
        self.elsewhere = ""
        self.asked: list[tuple[str, str | None, str | None]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def listing(self) -> bytes:
        siblings = []
        for name, content in self.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": git}
            if name.endswith(LARGE):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        return json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                ranged, key = self.headers.get("Range"), self.headers.get("Authorization")
                hub.asked.append((self.path, ranged, key))
                if self.path.startswith("/api/models/org/model/revision/main"):
                    return self.reply(hub.refuse or 200, hub.listing())
                if not self.path.startswith(f"/org/model/resolve/{COMMIT}/"):
                    return self.reply(404, b"no")
                if hub.elsewhere:
                    self.send_response(302)
                    self.send_header("Location", hub.elsewhere + self.path)
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                name = self.path.removeprefix(f"/org/model/resolve/{COMMIT}/")
                content = hub.send.get(name, hub.files[name])
                begin = int(ranged.removeprefix("bytes=").rstrip("-")) if ranged and not hub.whole_only else 0
                cut = hub.break_after if hub.breaks and len(content) - begin > hub.break_after else 0
                hub.breaks -= bool(cut)
                self.reply(206 if begin else 200, content[begin:], cut=cut)

            def reply(self, status: int, body: bytes, *, cut: int = 0) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: cut or None])

            def log_message(self, format: str, *args: object) -> None:
                pass

        return Handler
