"""Two clones share data, models, runs and experiments by real servers: SSH, S3, HTTP."""

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
from team_page import PAGE, REPOSITORY, blocks, clone_with_origin, objects, person, scores, shell

needs_ssh = pytest.mark.skipif(not SSHD, reason="no sshd (Debian: openssh-server)")
needs_s3 = pytest.mark.skipif(not MOTO, reason="no moto_server (`make tools`)")

# The addresses and names that the page makes up.
SERVER, KEY = "ssh://data.example.org/srv/brain", "~/.ssh/id_ed25519"
BUCKET, STORAGE = "s3://team-bucket/brain", "https://storage.example.org"
PUBLIC = "https://data.example.org/brain"


class Remote(NamedTuple):
    """A remote as the page sets it up, with real addresses for those that it makes up."""

    commands: str  # the page's block
    addresses: Mapping[str, str]
    writes_to: str  # the remote that is pushed to; the default one where it is ""
    folder: Path | None  # where its objects lie, where that is a folder

    def set_up(self, folder: Path) -> None:
        """Set the remote up in the clone that shares it with all others, and commit that."""
        self.run_lines(folder, local=False)
        shell(folder, "git commit -qam 'A remote for all of us'; git push -q")

    def join(self, folder: Path) -> None:
        """Set up in a clone what is each user's own."""
        self.run_lines(folder, local=True)

    def run_lines(self, folder: Path, *, local: bool) -> None:
        """Run the lines that configure DVC: those for all together, or those for each user."""
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
            shell(folder, blocks("Share data and models")[0])


@pytest.fixture
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Remote]:
    """Run the server of a kind, ssh, s3 or http."""
    objects_at = tmp_path / "server"
    with ExitStack() as running:
        if request.param == "ssh":
            server = running.enter_context(ssh_server(tmp_path / "sshd"))
            yield ssh_remote(server, objects_at)
        elif request.param == "s3":
            address = running.enter_context(s3_server(tmp_path / "moto", "team-bucket"))
            names = {STORAGE: address, '"$KEY_ID"': "anyone", '"$SECRET_KEY"': "secret"}
            yield Remote(blocks("S3")[0], names, "", None)
        else:
            objects_at.mkdir()
            address = running.enter_context(serving(files_of(objects_at)))
            names = {PUBLIC: address, SERVER: str(objects_at)}
            commands = blocks("Anyone may read, few may write")[0]
            yield Remote(commands, names, "private", objects_at)


def ssh_remote(server: SshServer, folder: Path) -> Remote:
    names = {
        SERVER: f"ssh://127.0.0.1:{server.port}{folder}",
        "user me": f"user {user_name()}",
        KEY: str(server.folder / "client"),
    }
    return Remote(blocks("A server reached by SSH")[0], names, "", folder)


def user_name() -> str:
    return subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()


def corrupt(folder: Path) -> list[str]:
    """Return the objects of a cache or remote whose content is not that of their name."""
    found = []
    for path in objects(folder / "files/md5"):
        digest = hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324
        if digest != (path.parent.name + path.name).removesuffix(".dir"):
            found.append(path.as_posix())
    return found


@pytest.fixture
def first(committed_run: Path, tmp_path: Path) -> Path:
    """Return the first clone, whose graph has run."""
    return clone_with_origin(committed_run, tmp_path / "first/brain", tmp_path / "brain.git")


def second_clone(first: Path, remote: Remote) -> Path:
    """Return another clone, empty, as a teammate makes it."""
    home = first.parents[1] / "second"
    home.mkdir()
    clone = blocks("Share data and models")[1]
    shell(home, clone, {REPOSITORY: str(first.parents[1] / "brain.git")})
    remote.join(home / "brain")
    return home / "brain"


@pytest.fixture
def second(remote: Remote, first: Path) -> Path:
    """Return a clone that shares a remote with `first`, which has pushed everything."""
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
    assert shell(second, blocks("Share data and models")[2]).endswith(
        "Data and pipelines are up to date.\n"
    )
    assert ran(dvc(second, "repro")) == []
    if not remote.writes_to:  # over HTTP there is no run cache
        (second / "dvc.lock").unlink()
        done = dvc(second, "repro", "split")
        assert ran(done) == ["explore"]  # its tables are in Git, and not in the run cache
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
    shell(second, blocks("Share data and models")[2])
    shell(second, "git switch -qc lower; dvc exp run --quiet -S evaluate.threshold=0.002")
    shell(second, "git commit -qam 'A lower threshold'; git push -qu origin lower")
    shell(second, f"dvc push --run-cache{to}")
    shell(second, "dvc exp run --quiet --temp --name lowest -S evaluate.threshold=0.001")
    shell(second, f"dvc exp push --run-cache{to} origin lowest")
    assert "are in sync" in shell(second, f"dvc status --cloud{to}")

    shell(first, "git fetch -q")
    told = shell(first, "dvc metrics diff main origin/lower")
    rows = re.findall(r"metrics/evaluate\.json\s+(\w+)\.(\S+)\s+(\S+)\s+(\S+)\s+\S+\n", told)
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
    """Return a number that `dvc metrics diff` prints, which is "-" for null."""
    return None if text == "-" else float(text)


@needs_ssh
def test_a_push_and_a_pull_that_were_cut_are_finished_by_running_them_again(
    first: Path, tmp_path: Path
) -> None:
    """The server is killed with all its connections, half of the objects on their way."""
    many = first / "many"
    many.mkdir()
    for n in range(1500):
        (many / f"{n}.bin").write_bytes(hashlib.sha256(str(n).encode()).digest() * 2000)
    shell(first, "dvc add --quiet many; git add many.dvc .gitignore; git commit -qm Many")
    with ssh_server(tmp_path / "sshd") as server:
        remote = ssh_remote(server, tmp_path / "server")
        remote.set_up(first)
        remote.join(first)
        sent = cut(server, first, "push", tmp_path / "server")
        n_objects = len(objects(first / ".dvc/cache/files/md5"))
        assert 0 < sent < n_objects
        assert corrupt(tmp_path / "server") == []
        server.start()
        pushed = dvc(first, "push")
        assert pushed.returncode == 0, pushed.stderr
        n_pushed = int(re.findall(r"(\d+) files? pushed", pushed.stdout)[0])
        assert 0 < n_pushed < n_objects  # what had arrived is not sent again
        assert corrupt(tmp_path / "server") == []

        second = second_clone(first, remote)
        fetched = cut(server, second, "pull", second / ".dvc/cache")
        assert fetched > 0
        assert corrupt(second / ".dvc/cache") == []
        server.start()
        pulled = dvc(second, "pull")
        assert pulled.returncode == 0, pulled.stderr
        assert "up to date" in dvc(second, "status").stdout
        assert corrupt(second / ".dvc/cache") == []
        for path in many.iterdir():
            assert (second / "many" / path.name).read_bytes() == path.read_bytes()


def cut(server: SshServer, clone: Path, command: str, arrives: Path) -> int:
    """Kill the server while a push or pull is at it; return how many objects had arrived."""
    at_work = subprocess.Popen(
        ["dvc", command],
        cwd=clone,
        env=dvc_environment() | person(clone.parent),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 120
    while len(objects(arrives / "files/md5")) < 100:
        assert at_work.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    server.kill()
    told, _ = at_work.communicate(timeout=300)
    assert at_work.returncode != 0
    assert "ERROR: failed to transfer" in told or "ERROR: unexpected error" in told
    return len(objects(arrives / "files/md5"))


@needs_ssh
def test_without_access_dvc_says_what_the_page_explains(first: Path, tmp_path: Path) -> None:
    table = PAGE.partition("### When it does not work")[2].partition("\n## ")[0]
    with ssh_server(tmp_path / "sshd") as server:
        remote = ssh_remote(server, tmp_path / "server")
        remote.set_up(first)
        remote.join(first)
        for key, said, explained in (
            ("stranger", "Permission denied for user", "`Permission denied for user …`"),
            ("none", "No such file or directory: '", "`No such file or directory: '…/"),
        ):
            shell(first, f"dvc remote modify --local server keyfile {server.folder / key}")
            done = dvc(first, "push")
            assert done.returncode != 0
            assert said in done.stderr
            assert "Traceback" not in done.stderr
            assert explained in table


def test_a_remote_without_the_data_says_so(first: Path, tmp_path: Path) -> None:
    home = tmp_path / "stranger"
    home.mkdir()
    shell(home, f"git clone -q {tmp_path}/brain.git brain")
    done = dvc(home / "brain", "pull")
    assert done.returncode == 1
    said = "Some of the cache files do not exist neither locally nor on remote"
    assert said in done.stderr
    assert said in PAGE
    assert corrupt(home / "brain/.dvc/cache") == []


@needs_s3
def test_s3_without_credentials_says_what_the_page_explains(first: Path, tmp_path: Path) -> None:
    with s3_server(tmp_path / "moto", "team-bucket") as address:
        remote = Remote(blocks("S3")[0], {STORAGE: address}, "", None)
        remote.set_up(first)
        done = dvc(first, "push", AWS_EC2_METADATA_DISABLED="true", HOME=str(tmp_path))
        assert done.returncode != 0
        assert "Unable to locate credentials" in done.stderr
        assert "`Unable to locate credentials`" in PAGE
