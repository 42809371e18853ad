"""Two clones share data, models, runs and experiments through SSH, S3 and HTTP servers."""

import hashlib
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers import dvc, dvc_environment, ran
from servers import MOTO, SSHD, SshServer, files_of, s3_server, serving, ssh_server
from team_page import (
    PAGE,
    REPOSITORY,
    TABLES,
    block,
    clone_with_origin,
    objects,
    scores,
    shell,
    user_environment,
)

needs_ssh = pytest.mark.skipif(not SSHD, reason="no sshd (Debian: openssh-server)")
needs_s3 = pytest.mark.skipif(not MOTO, reason="no moto_server (`make install`)")

# Addresses and names that the page uses as examples.
SERVER, KEY = "ssh://data.example.org/srv/brain", "~/.ssh/id_ed25519"
BUCKET, STORAGE = "s3://team-bucket/brain", "https://storage.example.org"
PUBLIC = "https://data.example.org/brain"


class Remote(NamedTuple):
    """A remote that is set up with the page's commands."""

    commands: str  # the page's block
    addresses: Mapping[str, str]  # from example addresses of the page to real ones
    writes_to: str  # name of the remote to push to; "" is the default remote
    folder: Path | None  # where the remote's objects are stored, if in a folder

    def set_up(self, folder: Path) -> None:
        """Add the remote in the first clone; commit and push its settings for the team."""
        self.run_lines(folder, local=False)
        shell(folder, "git commit -qam 'Add a remote'; git push -q")

    def join(self, folder: Path) -> None:
        """Make the settings that each user makes in a clone."""
        self.run_lines(folder, local=True)

    def run_lines(self, folder: Path, *, local: bool) -> None:
        """Run the lines that configure DVC, either for the team or (`local`) for one user."""
        lines = [line for line in self.commands.splitlines() if "dvc remote" in line]
        text = "\n".join(line for line in lines if ("--local" in line) is local)
        named = {name: value for name, value in self.addresses.items() if name in text}
        shell(folder, text, named)

    def push(self, folder: Path) -> None:
        """Push as the page says."""
        if self.writes_to:
            lines = self.commands.splitlines()
            shell(folder, "\n".join(line for line in lines if "dvc push" in line))
            shell(folder, "git push -q")
        else:
            shell(folder, block("dvc push --run-cache\n"))


@pytest.fixture
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    """Run an SSH, S3 or HTTP server, as the parameter says; yield a remote on it."""
    objects_at = tmp_path / "server"
    with ExitStack() as running:
        if request.param == "ssh":
            server = running.enter_context(ssh_server(tmp_path / "sshd"))
            yield ssh_remote(server, objects_at)
        elif request.param == "s3":
            address = running.enter_context(s3_server(tmp_path / "moto", "team-bucket"))
            names = {STORAGE: address, '"$KEY_ID"': "anyone", '"$SECRET_KEY"': "secret"}
            yield Remote(block("endpointurl"), names, "", None)
        else:
            objects_at.mkdir()
            address = running.enter_context(serving(files_of(objects_at)))
            names = {PUBLIC: address, SERVER: str(objects_at)}
            commands = block("--remote private")
            yield Remote(commands, names, "private", objects_at)


def ssh_remote(server: SshServer, folder: Path) -> Remote:
    names = {
        SERVER: f"ssh://127.0.0.1:{server.port}{folder}",
        "user me": f"user {user_name()}",
        KEY: str(server.folder / "client"),
    }
    return Remote(block("dvc remote add --default server"), names, "", folder)


def user_name() -> str:
    return subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()


def corrupt(folder: Path) -> list[str]:
    """Return the files in a cache or remote whose MD5 differs from their name."""
    found = []
    for path in objects(folder / "files/md5"):
        digest = hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324
        if digest != (path.parent.name + path.name).removesuffix(".dir"):
            found.append(path.as_posix())
    return found


@pytest.fixture
def first(committed_run: Path, tmp_path: Path) -> Path:
    """Return the first clone, in which the graph has run."""
    return clone_with_origin(committed_run, tmp_path / "first/brain", tmp_path / "brain.git")


def second_clone(first: Path, remote: Remote) -> Path:
    """Return a teammate's new clone, without outputs."""
    home = first.parents[1] / "second"
    home.mkdir()
    shell(home, block("git clone"), {REPOSITORY: str(first.parents[1] / "brain.git")})
    remote.join(home / "brain")
    return home / "brain"


@pytest.fixture
def second(remote: Remote, first: Path) -> Path:
    """Return a clone that shares a remote with `first`, after `first` has pushed everything."""
    remote.set_up(first)
    remote.join(first)
    remote.push(first)
    return second_clone(first, remote)


@pytest.mark.parametrize(
    "remote",
    [pytest.param("ssh", marks=needs_ssh), pytest.param("s3", marks=needs_s3), "http"],
    indirect=True,
)
def test_a_team_shares_data_and_computes_nothing_twice(
    remote: Remote, first: Path, second: Path
) -> None:
    pulled = shell(second, block("dvc pull --run-cache"))
    assert pulled.endswith("Data and pipelines are up to date.\n")
    assert ran(dvc(second, "repro")) == []
    if not remote.writes_to:  # over HTTP there is no run cache
        (second / "dvc.lock").unlink()
        done = dvc(second, "repro", "split")
        assert ran(done) == ["explore"]  # its tables are in Git, so they are not in the run cache
        assert done.stdout.count("is cached - skipping run") == 4
        shell(second, "git restore dvc.lock")
    assert shell(second, "git status --porcelain") == ""
    for path in ("models/unet.safetensors", "report/index.html", "data/splits.csv"):
        assert (second / path).read_bytes() == (first / path).read_bytes()
    for clone in (first, second):
        assert corrupt(clone / ".dvc/cache") == []
    assert remote.folder is None or corrupt(remote.folder) == []


@pytest.mark.parametrize(
    "remote",
    [
        pytest.param("ssh", marks=needs_ssh),
        pytest.param("s3", marks=[needs_s3, pytest.mark.long]),
        pytest.param("http", marks=pytest.mark.long),
    ],
    indirect=True,
)
def test_a_team_shares_branches_and_experiments(remote: Remote, first: Path, second: Path) -> None:
    to = f" --remote {remote.writes_to}" if remote.writes_to else ""
    shell(second, block("dvc pull --run-cache"))
    shell(second, "git switch -qc lower; dvc exp run --quiet -S evaluate.threshold=0.002")
    shell(second, "git commit -qam 'A lower threshold'; git push -qu origin lower")
    shell(second, f"dvc push --run-cache{to}")
    shell(second, "dvc exp run --quiet --temp --name lowest -S evaluate.threshold=0.001")
    shell(second, f"dvc exp push --run-cache{to} origin lowest")
    assert "are in sync" in shell(second, f"dvc status --cloud{to}")

    shell(first, "git fetch -q")
    diff = shell(first, "dvc metrics diff main origin/lower")
    rows = re.findall(r"metrics/evaluate\.json\s+(\w+)\.(\S+)\s+(\S+)\s+(\S+)\s+\S+\n", diff)
    assert ("test", "threshold", "0.5", "0.002") in rows
    for split, name, before, after in rows:
        stored = scores(first)[split][name], scores(second)[split][name]
        assert (number(before), number(after)) == stored
    shell(first, "dvc exp pull origin lowest; dvc exp apply lowest")
    assert scores(first)["test"]["threshold"] == 0.001
    assert ran(dvc(first, "repro")) == []
    shell(first, "git restore .; git switch -q lower; dvc pull")
    assert ran(dvc(first, "repro")) == []
    assert scores(first) == scores(second)
    shell(first, "git switch -q main; dvc checkout")
    assert ran(dvc(first, "repro")) == []
    for clone in (first, second):
        assert corrupt(clone / ".dvc/cache") == []
    assert remote.folder is None or corrupt(remote.folder) == []


def number(text: str) -> float | None:
    """Parse a number printed by `dvc metrics diff`, where "-" stands for null."""
    return None if text == "-" else float(text)


@needs_ssh
def test_an_interrupted_push_or_pull_is_completed_by_repeating_it(
    first: Path, tmp_path: Path
) -> None:
    """The server and its connections are killed during the transfer."""
    many = first / "many"
    many.mkdir()
    for n in range(1500):
        (many / f"{n}.bin").write_bytes(hashlib.sha256(str(n).encode()).digest() * 2000)
    shell(first, "dvc add --quiet many; git add many.dvc .gitignore; git commit -qm Many")
    with ssh_server(tmp_path / "sshd") as server:
        remote = ssh_remote(server, tmp_path / "server")
        remote.set_up(first)
        remote.join(first)
        sent = interrupt(server, first, "push", tmp_path / "server")
        n_objects = len(objects(first / ".dvc/cache/files/md5"))
        assert 0 < sent < n_objects
        assert corrupt(tmp_path / "server") == []
        server.start()
        pushed = dvc(first, "push")
        assert pushed.returncode == 0, pushed.stderr
        n_pushed = int(re.findall(r"(\d+) files? pushed", pushed.stdout)[0])
        assert 0 < n_pushed < n_objects  # objects that had arrived are not sent again
        assert corrupt(tmp_path / "server") == []

        second = second_clone(first, remote)
        fetched = interrupt(server, second, "pull", second / ".dvc/cache")
        assert fetched > 0
        assert corrupt(second / ".dvc/cache") == []
        server.start()
        pulled = dvc(second, "pull")
        assert pulled.returncode == 0, pulled.stderr
        assert "up to date" in dvc(second, "status").stdout
        assert corrupt(second / ".dvc/cache") == []
        for path in many.iterdir():
            assert (second / "many" / path.name).read_bytes() == path.read_bytes()


def interrupt(server: SshServer, clone: Path, command: str, target: Path) -> int:
    """Kill the server during `dvc push` or `dvc pull`; return how many objects had arrived."""
    process = subprocess.Popen(
        ["dvc", command],
        cwd=clone,
        env=dvc_environment() | user_environment(clone.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 120
    while len(objects(target / "files/md5")) < 100:
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    server.kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "ERROR: failed to transfer" in output or "ERROR: unexpected error" in output
    return len(objects(target / "files/md5"))


@needs_ssh
def test_errors_of_ssh_access_are_explained_on_the_page(first: Path, tmp_path: Path) -> None:
    with ssh_server(tmp_path / "sshd") as server:
        remote = ssh_remote(server, tmp_path / "server")
        remote.set_up(first)
        remote.join(first)
        for key, message, explained in (
            ("stranger", "Permission denied for user", "`Permission denied for user …`"),
            ("none", "No such file or directory: '", "`No such file or directory: '…/"),
        ):
            shell(first, f"dvc remote modify --local server keyfile {server.folder / key}")
            done = dvc(first, "push")
            assert done.returncode != 0
            assert message in done.stderr
            assert "Traceback" not in done.stderr
            assert explained in TABLES


def test_the_error_of_a_pull_before_any_push_is_explained_on_the_page(
    first: Path, tmp_path: Path
) -> None:
    home = tmp_path / "stranger"
    home.mkdir()
    shell(home, f"git clone -q {tmp_path}/brain.git brain")
    done = dvc(home / "brain", "pull")
    assert done.returncode == 1
    message = "Some of the cache files do not exist neither locally nor on remote"
    assert message in done.stderr
    assert message in PAGE
    assert corrupt(home / "brain/.dvc/cache") == []


@needs_s3
def test_the_error_of_s3_without_credentials_is_explained_on_the_page(
    first: Path, tmp_path: Path
) -> None:
    with s3_server(tmp_path / "moto", "team-bucket") as address:
        remote = Remote(block("endpointurl"), {STORAGE: address}, "", None)
        remote.set_up(first)
        done = dvc(first, "push", AWS_EC2_METADATA_DISABLED="true", HOME=str(tmp_path))
        assert done.returncode != 0
        assert "Unable to locate credentials" in done.stderr
        assert "`Unable to locate credentials`" in PAGE
