"""The command blocks of docs/team.md, and functions that run them as a user would."""

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from helpers import ROOT, clone_with_outputs, dvc_environment

PAGE = (ROOT / "docs/team.md").read_text()
BLOCKS: list[str] = re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)
TABLES = "".join(line for line in PAGE.splitlines(keepends=True) if line.startswith("|"))
REPOSITORY = "https://git.example.org/team/brain.git"


def block(command: str) -> str:
    """Return the one block of commands on the page that contains `command`."""
    found = [text for text in BLOCKS if command in text]
    assert len(found) == 1, f"{len(found)} blocks of docs/team.md contain {command!r}"
    return found[0]


def shell(folder: Path, commands: str, names: Mapping[str, str] | None = None) -> str:
    """Run commands in bash, stopping at the first that fails; return their output.

    `names` maps addresses and names that the page uses as examples to real ones.
    """
    for name, value in (names or {}).items():
        assert name in commands, f"{name} is not in the block"
        commands = commands.replace(name, value)
    # With a pipe, this would wait until the queue workers that the commands start have ended.
    with tempfile.TemporaryFile("w+") as log:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=folder,
            env=dvc_environment() | user_environment(folder.parent),
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        )
        log.seek(0)
        output = log.read()
    assert done.returncode == 0, f"{commands}\n{output}"
    return output


def user_environment(home: Path) -> dict[str, str]:
    """Return environment variables that give a user a home folder, and Git a name."""
    names = {f"GIT_{role}_NAME": "Somebody" for role in ("AUTHOR", "COMMITTER")}
    addresses = {f"GIT_{role}_EMAIL": "some@example.org" for role in ("AUTHOR", "COMMITTER")}
    settings = {
        "HOME": str(home),
        "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"),
        "GIT_TERMINAL_PROMPT": "0",
        "NO_PROXY": "127.0.0.1",
    }
    return settings | names | addresses


def clone_with_origin(source: Path, folder: Path, origin: Path) -> Path:
    """Copy a repository with its outputs, and create a bare clone at `origin` as its origin."""
    clone_with_outputs(source, folder)
    subprocess.run(["git", "clone", "-q", "--bare", folder, origin], check=True)
    shell(folder, f"git remote add origin '{origin}'; git fetch -q; git branch -qu origin/main")
    return folder


def objects(folder: Path) -> list[Path]:
    """Return the files in a DVC cache or remote, without temporary ones."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path.suffix != ".tmp")


def scores(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((folder / "metrics/evaluate.json").read_text())
    return found
