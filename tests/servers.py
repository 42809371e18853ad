"""Servers on 127.0.0.1: imitations of Kaggle and the Hugging Face hub, and servers for remotes."""

import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar
from urllib.request import Request, urlopen

import psutil

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(os.environ.get("TEST_TOOLS", ROOT / ".venv/tools"))  # installed by `make install`
SSHD = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") or ""
MOTO = shutil.which("moto_server", path=str(TOOLS / "bin")) or ""


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
    """Return a handler for downloads of a data set; it sends only `broken_after` bytes, if set."""

    class Kaggle(Quiet):
        requests: ClassVar[list[str]] = []

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.requests.append(json.dumps(request))
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
    """Return a handler that serves a folder's files as a model repository, at any revision."""

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


class SshServer:
    """An OpenSSH server with temporary keys: `client` may log in, `stranger` may not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        for name in ("host", "client", "stranger"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        (folder / "authorized_keys").write_text((folder / "client.pub").read_text())
        (folder / "config").write_text(
            f"Port {self.port}\n"
            "ListenAddress 127.0.0.1\n"
            f'HostKey "{folder}/host"\n'
            f'AuthorizedKeysFile "{folder}/authorized_keys"\n'
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "UsePAM no\nStrictModes no\nPidFile none\nSubsystem sftp internal-sftp\n"
        )

    def start(self) -> None:
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd requires it if root starts it
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [SSHD, "-D", "-e", "-f", self.folder / "config"], stdout=log, stderr=log
            )
        wait_for(self.port)

    def kill(self) -> None:
        """Kill the server and all its connections at once."""
        assert self.process
        server = psutil.Process(self.process.pid)
        for process in [*server.children(recursive=True), server]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Run an SSH server while the block runs; keep its keys and its log in `folder`."""
    folder.mkdir(parents=True)
    server = SshServer(folder)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def s3_server(folder: Path, bucket: str) -> Iterator[str]:
    """Run moto's S3 server with an empty bucket while the block runs; yield its address."""
    folder.mkdir(parents=True)
    port = free_port()
    with (folder / "log").open("wb") as log:
        command = [MOTO, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(port)
        address = f"http://127.0.0.1:{port}"
        request = Request(f"{address}/{bucket}", method="PUT")  # noqa: S310
        urlopen(request).close()  # noqa: S310
        yield address
    finally:
        process.kill()
        process.wait()


def files_of(folder: Path) -> type[SimpleHTTPRequestHandler]:
    """Return a handler that serves the files of a folder, read-only."""

    class Files(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: Any) -> None:
            pass

    return Files


def free_port() -> int:
    """Return an unused port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def wait_for(port: int, seconds: float = 60) -> None:
    """Return once a port of 127.0.0.1 accepts connections; after `seconds`, raise the error."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)
