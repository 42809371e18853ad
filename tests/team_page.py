"""The commands of docs/team.md, and ways to run them as a person would."""

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from helpers import ROOT, clone_with_outputs, dvc_environment

PAGE = (ROOT / "docs/team.md").read_text()
REPOSITORY = "https://git.example.org/team/brain.git"


def blocks(heading: str) -> list[str]:
    """Return the blocks of commands under a heading, without those of headings below it."""
    [section] = re.findall(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", PAGE, re.M | re.S)
    found: list[str] = re.findall(r"^```sh\n(.*?)^```", section, re.M | re.S)
    return found


def shell(folder: Path, commands: str, names: Mapping[str, str] | None = None) -> str:
    """Run commands as a person would who stops at the first that fails; return what they print.

    `names` has addresses that the page makes up, and what stands for each.
    """
    for name, value in (names or {}).items():
        assert name in commands, f"{name} is not in the block"
        commands = commands.replace(name, value)
    with tempfile.TemporaryFile("w+") as told:  # a pipe would stay open as long as queue workers
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=folder,
            env=dvc_environment() | person(folder.parent),
            stdout=told,
            stderr=subprocess.STDOUT,
            check=False,
        )
        told.seek(0)
        output = told.read()
    assert done.returncode == 0, f"{commands}\n{output}"
    return output


def person(home: Path) -> dict[str, str]:
    """Return the environment of somebody who has a name and a home folder."""
    names = {f"GIT_{role}_NAME": "Somebody" for role in ("AUTHOR", "COMMITTER")}
    addresses = {f"GIT_{role}_EMAIL": "some@example.org" for role in ("AUTHOR", "COMMITTER")}
    own = {
        "HOME": str(home),
        "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"),
        "GIT_TERMINAL_PROMPT": "0",
        "NO_PROXY": "127.0.0.1",
    }
    return own | names | addresses


def clone_with_origin(source: Path, folder: Path, origin: Path) -> Path:
    """Copy a repository with its outputs; its origin is a bare one, made at `origin`."""
    clone_with_outputs(source, folder)
    subprocess.run(["git", "clone", "-q", "--bare", folder, origin], check=True)
    shell(folder, f"git remote add origin '{origin}'; git fetch -q; git branch -qu origin/main")
    return folder


def objects(folder: Path) -> list[Path]:
    """Return the files of a cache or remote that DVC keeps by their hash."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in files if path.suffix != ".tmp")


def scores(folder: Path) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((folder / "metrics/evaluate.json").read_text())
    return found
