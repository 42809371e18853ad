"""`make demo` works wherever the project is, its network has learned, and a failure says why.

No other test depends on what a network has learned.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from filelock import FileLock

import demo
from conftest import ROOT, dvc_environment, make_repository, put_into_larger_repository
from dotted import leaves
from manifest import read_manifest
from slices import read_image, read_mask, slice_path


def best_flair_threshold(folder: Path, slice_ids: list[str]) -> float:
    """Return the highest micro IoU that any threshold on FLAIR reaches on slices of a demo."""
    images, masks = folder / "data/slices/images", folder / "data/slices/masks"
    flair = np.stack([read_image(slice_path(images, s))[..., 1] for s in slice_ids])
    mask = np.stack([read_mask(slice_path(masks, s)) for s in slice_ids])
    return max(
        float(((flair > t) & mask).sum() / ((flair > t) | mask).sum()) for t in range(0, 256, 4)
    )


def test_the_demo_overrides_params_that_exist() -> None:
    known: dict[str, Any] = dict(leaves(yaml.safe_load((ROOT / "params.yaml").read_text())))
    for name, value in demo.PARAMS.items():
        assert name in known
        if known[name] != "auto":
            assert type(yaml.safe_load(str(value))) is type(known[name]), name


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_the_demo_runs_in_a_subfolder_with_any_name_and_beats_any_threshold(tmp_path: Path) -> None:
    """In a folder of a larger Git repository, while another DVC is at work in the project."""
    project = make_repository(tmp_path / "Jörg's scans & more/脳 project")
    outer = put_into_larger_repository(project)
    rwlock = project / ".dvc/tmp/rwlock"
    rwlock.parent.mkdir(parents=True)
    busy = {str(project / path): {"pid": os.getpid(), "cmd": "dvc repro"} for path in ("data", ".")}
    rwlock.write_text(json.dumps({"write": busy}))

    done = subprocess.run(
        ["make", "demo", f"PYTHON={sys.executable}"],
        cwd=project,
        env=dvc_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = project / "demo"
    assert str(made / "report/index.html") in done.stdout
    assert (made / "report/index.html").is_file()
    assert git(made, "status", "--porcelain") == git(outer, "status", "--porcelain") == ""

    scores = json.loads((made / "metrics/evaluate.json").read_text())["test"]
    splits = read_manifest(made / "data/splits.csv")
    slice_ids = splits.loc[splits["split"] == "test", "slice_id"].tolist()
    assert scores["iou"] >= 0.4
    assert scores["iou"] > 2 * best_flair_threshold(made, slice_ids) > 0  # always empty scores 0


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
    assert "`dvc exp run` ended with 255 in demo; it says why above" in done.stderr
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
    (repository / "demo").mkdir()
    (repository / "demo/report.html").write_text("old")
    done = run_demo(repository, **spoil(repository))
    assert done.returncode == 1
    assert reason.format(folder=repository) in done.stderr
    assert "Traceback" not in done.stderr
    assert (repository / "demo/report.html").read_text() == "old"


def test_two_demos_do_not_run_in_the_same_folder(repository: Path) -> None:
    with FileLock(repository / ".demo.lock"):
        done = run_demo(repository)
    assert done.returncode == 1
    assert "another demo is at work in demo; wait until it has ended" in done.stderr
    assert not (repository / "demo").exists()
