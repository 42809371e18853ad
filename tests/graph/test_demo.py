"""The demo: its params, what it replaces, and what it says when it fails or is interrupted."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from filelock import FileLock

import demo
from helpers import ROOT, dvc_environment, git
from pipeline.params import leaves
from pipeline.refusals import Refusal


def test_the_demo_overrides_params_that_exist() -> None:
    known: dict[str, Any] = dict(leaves(yaml.safe_load((ROOT / "params.yaml").read_text())))
    for name, value in demo.PARAMS.items():
        assert name in known
        if known[name] != "auto":
            assert type(yaml.safe_load(str(value))) is type(known[name]), name


def run_demo(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "src/demo.py", "demo"],
        cwd=folder,
        env=dvc_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_stage_that_fails_says_why_and_how_to_go_on(repository: Path) -> None:
    (repository / "src/acquire.py").write_text("raise SystemExit('the reason of the stage')")
    done = run_demo(repository)
    assert done.returncode == 1
    assert "the reason of the stage" in done.stderr
    assert "ERROR: failed to reproduce 'acquire'" in done.stderr
    assert f"`dvc exp run` ended with 255 in {repository}/demo; it says why above" in done.stderr
    assert f"Fix that in {repository}, not in the copy" in done.stderr
    assert "Traceback" not in done.stderr


def no_git(repository: Path) -> dict[str, str]:
    (repository / "bin").mkdir()
    (repository / "bin/python").symlink_to(sys.executable)
    return {"PATH": str(repository / "bin")}


def no_repository(repository: Path) -> dict[str, str]:
    shutil.rmtree(repository / ".git")
    return {}


def ignored(repository: Path) -> dict[str, str]:
    git(repository, "rm", "--quiet", "--cached", "-r", ".")
    (repository / ".gitignore").write_text("*\n")
    return {}


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (no_git, "the program `git` is missing; install Git"),
        (no_repository, "in a folder without Git, run `git init && git add .` first"),
        (ignored, "Git does not list dvc.yaml in {folder}: it ignores this folder"),
    ],
)
def test_a_project_that_cannot_be_copied_is_refused_and_the_old_demo_stays(
    repository: Path, spoil: Any, reason: str
) -> None:
    old = repository / "demo/.git/made-by-demo"
    old.parent.mkdir(parents=True)
    old.touch()
    done = run_demo(repository, **spoil(repository))
    assert done.returncode == 1
    assert reason.format(folder=repository) in done.stderr
    assert "Traceback" not in done.stderr
    assert old.exists()


def test_two_demos_do_not_run_in_the_same_folder(repository: Path) -> None:
    with FileLock(repository / ".demo.lock"):
        done = run_demo(repository)
    assert done.returncode == 1
    assert "another demo is running in demo; wait until it has ended" in done.stderr
    assert not (repository / "demo").exists()


def test_an_earlier_demo_is_replaced_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    folder, link = tmp_path / "demo", tmp_path / "link"
    demo.copy_project(folder)
    (folder / "left over").touch()
    link.symlink_to(folder)
    demo.copy_project(folder)
    assert not (folder / "left over").exists()
    assert git(folder, "status", "--porcelain") == ""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/text").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for other in (tmp_path / "thesis", tmp_path / "file", link):
        with pytest.raises(Refusal, match=f"{other} was not made by the demo; move it"):
            demo.copy_project(other)
    assert (tmp_path / "thesis/text").read_text() == (tmp_path / "file").read_text() == "mine"


def test_only_files_of_the_project_are_copied(repository: Path) -> None:
    """New code is, scans that lie about are not; and a Git hook's variables do no harm."""
    (repository / "src/new.py").touch()
    (repository / "scans.zip").touch()
    (repository / "src/acquire.py").write_text("raise SystemExit('as far as here')")
    before = git(repository, "log", "--format=%H")
    hook = {"GIT_DIR": str(repository / ".git"), "GIT_INDEX_FILE": str(repository / ".git/index")}
    assert "as far as here" in run_demo(repository, **hook).stderr
    copied = git(repository / "demo", "ls-files").splitlines()
    assert "src/new.py" in copied
    assert "scans.zip" not in copied
    assert git(repository, "log", "--format=%H") == before
    assert git(repository, "diff", "--cached", "--name-only") == ""


def test_ctrl_c_ends_everything_before_the_demo_ends(repository: Path) -> None:
    (repository / "src/acquire.py").write_text(
        "import time\n"
        "try:\n    print('begun', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(1)\n    print('ended', flush=True)\n    raise"
    )
    with subprocess.Popen(
        [sys.executable, "src/demo.py", "demo"],
        cwd=repository,
        env=dvc_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as running:
        assert running.stdout
        lines: list[str] = []
        while "begun" not in (line := running.stdout.readline()):
            assert running.poll() is None, lines
            lines.append(line)
        os.killpg(running.pid, signal.SIGINT)
        output, _ = running.communicate(timeout=60)
    assert running.returncode == 130
    assert "ended" in output
    assert output.rstrip().endswith("demo.py: interrupted; run the same command again")
    assert not [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == f"{repository}/demo"]
