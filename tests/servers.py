"""Servers on loopback that answer as Kaggle and the Hugging Face hub do, for their real clients."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler], port: int = 0) -> Iterator[str]:
    """Serve on 127.0.0.1 while the block runs; yield the address."""
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(BaseHTTPRequestHandler):
    """A handler that remembers requests instead of printing them."""

    requests: ClassVar[list[str]]

    def log_message(self, *_: Any) -> None:
        self.requests.append(f"{self.command} {self.path}")

    def answer(self, content: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        headers = {"Content_Length": str(len(content)), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def kaggle(archive: bytes, *, broken_after: int | None = None, code: int = 200) -> type[Quiet]:
    """Return a handler for the download of a data set; `broken_after` bytes the line goes dead."""

    class Kaggle(Quiet):
        requests: ClassVar[list[str]] = []

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.requests.append(json.dumps(asked))
            digest = base64.b64encode(hashlib.md5(archive).digest()).decode()  # noqa: S324
            if code != 200:
                self.answer(b"{}", code)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(archive)))
            self.send_header("X-Goog-Hash", f"md5={digest}")
            self.end_headers()
            self.wfile.write(archive[:broken_after])
            self.close_connection = True

    return Kaggle


def hub(repository: Path) -> type[Quiet]:
    """Return a handler that serves the files of one model repository at any revision."""

    class Hub(Quiet):
        requests: ClassVar[list[str]] = []

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = repository / self.path.split("?")[0].rpartition("/")[2]
            if "/resolve/" not in self.path or not path.is_file():
                self.answer(b"", 404, X_Error_Code="EntryNotFound")
                return
            revision = self.path.split("/resolve/")[1].split("/")[0]
            content = path.read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self.answer(content, ETag=f'"{etag}"', X_Repo_Commit=revision)

    return Hub
