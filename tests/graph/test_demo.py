"""The demo: its params, the files it copies and replaces, its errors and interruption."""

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


def test_the_demo_overrides_existing_params() -> None:
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


def test_the_error_of_a_failed_stage_is_shown_with_a_hint(repository: Path) -> None:
    (repository / "src/acquire.py").write_text("raise SystemExit('the stage failed')")
    done = run_demo(repository)
    assert done.returncode == 1
    assert "the stage failed" in done.stderr
    assert "ERROR: failed to reproduce 'acquire'" in done.stderr
    assert f"`dvc exp run` failed in {repository}/demo with exit code 255" in done.stderr
    assert f" in {repository}, not in the copy" in done.stderr
    assert "`make demo`" in done.stderr
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
    ("breakage", "reason"),
    [
        (no_git, "install Git"),
        (no_repository, "run `git init && git add .`"),
        (ignored, "Git does not list dvc.yaml in {folder}: "),
    ],
)
def test_a_project_that_cannot_be_copied_is_an_error_and_the_old_demo_stays(
    repository: Path, breakage: Any, reason: str
) -> None:
    old = repository / "demo/.git/made-by-demo"
    old.parent.mkdir(parents=True)
    old.touch()
    done = run_demo(repository, **breakage(repository))
    assert done.returncode == 1
    assert reason.format(folder=repository) in done.stderr
    assert "Traceback" not in done.stderr
    assert old.exists()


def test_a_second_demo_in_the_same_folder_is_an_error(repository: Path) -> None:
    with FileLock(repository / ".demo.lock"):
        done = run_demo(repository)
    assert done.returncode == 1
    assert "another demo is running in demo" in done.stderr
    assert not (repository / "demo").exists()


def test_only_an_earlier_demo_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        with pytest.raises(Refusal, match=f"{other} was not created by the demo"):
            demo.copy_project(other)
    assert (tmp_path / "thesis/text").read_text() == (tmp_path / "file").read_text() == "mine"


def test_only_files_of_the_project_are_copied(repository: Path) -> None:
    """New code is copied, untracked scans are not. Variables of a Git hook have no effect."""
    (repository / "src/new.py").touch()
    (repository / "scans.zip").touch()
    (repository / "src/acquire.py").write_text("raise SystemExit('the copy was made')")
    before = git(repository, "log", "--format=%H")
    hook = {"GIT_DIR": str(repository / ".git"), "GIT_INDEX_FILE": str(repository / ".git/index")}
    assert "the copy was made" in run_demo(repository, **hook).stderr
    copied = git(repository / "demo", "ls-files").splitlines()
    assert "src/new.py" in copied
    assert "scans.zip" not in copied
    assert git(repository, "log", "--format=%H") == before
    assert git(repository, "diff", "--cached", "--name-only") == ""


def test_after_ctrl_c_the_demo_waits_for_its_processes_to_end(repository: Path) -> None:
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
    assert output.rstrip().splitlines()[-1].startswith("demo.py: interrupted")
    assert not [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == f"{repository}/demo"]
