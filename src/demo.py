"""Run the graph up to the report on a small synthetic data set, in a copy of the project.

    python src/demo.py demo

The copy is a separate Git and DVC repository with the current files of the project, including your
uncommitted edits. The rest of the checkout does not change, and DVC may be running there.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from pipeline.command import run
from pipeline.refusals import Refusal

# A small training with one thread: on a busy machine, several would wait for each other. The demo
# downloads no weights, so the encoder starts from random ones and is trained too.
PARAMS = {
    "acquire.dataset": "phantom",
    "phantom.patients": 16,
    "phantom.image_size": 64,
    "encoder.weights": "none",
    "encoder.frozen": "false",
    "train.epochs": 6,
    "train.image_size": 32,
    "train.batch_size": 8,
    "compute.precision": "32-true",
    "compute.threads": 1,
    "compute.workers": 0,
}
# Untracked files are copied only from these folders; elsewhere they may be scans or passwords.
CODE = (".ci", ".github", "benchmarks", "docs", "src", "study", "tests")
MARKER = ".git/made-by-demo"  # a folder with this file may be replaced

# Settings that make Git and DVC ignore the user's configuration.
DEFAULTS = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",  # the user's own safe.directory is ignored, too
    "GIT_CONFIG_VALUE_0": "*",
    "DVC_GLOBAL_CONFIG_DIR": "/nonexistent",
    "DVC_SYSTEM_CONFIG_DIR": "/nonexistent",
}
# A Git hook sets GIT_DIR and others, and DVC sets DVC_ROOT for a stage; they would point the copy's
# commands at this checkout.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))}
ISOLATED = {
    **CLEAN,
    **DEFAULTS,
    # The stages call `python`, which must be the interpreter of this process.
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    "GIT_AUTHOR_NAME": "demo",
    "GIT_AUTHOR_EMAIL": "demo@example.org",
    "GIT_COMMITTER_NAME": "demo",
    "GIT_COMMITTER_EMAIL": "demo@example.org",
}


def git(*arguments: str, folder: Path | None = None) -> bytes:
    """Run Git in the current folder, or in `folder` without the user's settings; return its output.

    Raises a Refusal with Git's message if it fails.
    """
    try:
        completed = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            env=ISOLATED if folder else CLEAN,
            capture_output=True,
            check=True,
        )
    except FileNotFoundError:
        raise Refusal("cannot find the program `git`; install Git") from None
    except subprocess.CalledProcessError as error:
        reason = os.fsdecode(error.stderr).strip()
        raise Refusal(f"`git {arguments[0]}` failed in {folder or Path.cwd()}: {reason}") from None
    return completed.stdout


def project_files() -> list[Path]:
    """Return the files that Git tracks in the current folder, and untracked ones in CODE."""
    try:
        listed = git("ls-files", "-z") + git(
            "ls-files", "--others", "--exclude-standard", "-z", "--", *CODE
        )
    except Refusal as refusal:
        raise Refusal(
            f"{refusal}\nThe demo copies the files that Git lists, so it needs a clone of the "
            "repository. In a folder that is not a clone, run `git init && git add .` first."
        ) from None
    paths = sorted(Path(os.fsdecode(name)) for name in listed.split(b"\0") if name)
    if Path("dvc.yaml") not in paths:
        raise Refusal(
            f"Git does not list dvc.yaml in {Path.cwd()}: either Git ignores this folder, or it is "
            "not the root of the project. Run the demo in the root of a clone."
        )
    return [path for path in paths if path.is_file()]


def copy_project(folder: Path) -> None:
    """Copy the project's files to `folder` and commit them in a new repository there.

    An earlier copy is replaced. If anything else is at `folder`, this raises an error.
    """
    files = project_files()
    if folder.is_symlink() or (folder.exists() and not (folder / MARKER).exists()):
        raise Refusal(f"{folder.absolute()} was not created by the demo; move it or remove it")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    git("init", "--quiet", "--initial-branch=main", folder=folder)
    (folder / MARKER).touch()
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, folder / path)
    git("add", "--all", folder=folder)
    git("commit", "--quiet", "--message=Copy the project", folder=folder)


def run_graph(folder: Path) -> None:
    """Run the graph up to the report with PARAMS; DVC prints to the terminal."""
    overrides = [f"--set-param={name}={value}" for name, value in PARAMS.items()]
    command = [sys.executable, "-m", "dvc", "exp", "run", "--name", "demo", *overrides, "report"]
    with subprocess.Popen(command, cwd=folder, env=ISOLATED) as running:
        try:
            running.wait()
        except KeyboardInterrupt:
            running.wait()  # it got Ctrl-C, too; do not exit while it may still write
            raise
    if running.returncode:
        raise Refusal(
            f"`dvc exp run` failed in {folder.absolute()} with exit code {running.returncode}; its "
            f"output above says why. Fix the cause in {Path.cwd()}, not in the copy, and run "
            "`make demo` again."
        )
    git("commit", "--quiet", "--all", "--message=Add the results of the demo", folder=folder)


def summary(demo: Path, seconds: float) -> str:
    """Return the scores, where the results are and what to try next."""
    scores = json.loads((demo / "metrics/evaluate.json").read_text(encoding="utf-8"))["test"]
    activate = Path(os.path.relpath(sys.prefix)) / "bin/activate"
    enter = f"source {activate} && cd {demo}" if activate.exists() else f"cd {demo}"
    return f"""
The demo took {seconds:.0f} s. Test IoU {scores["iou"]:.3f}, mean Dice by patient \
{scores["dice_patient_mean"]:.3f}, n = {scores["n_patients"]} phantoms.
Open the report in a browser:
  {(demo / "report/index.html").absolute()}
Scores:  {demo}/metrics/evaluate.json, and the tables in {demo}/metrics/evaluate/
Figures: {demo}/metrics/explore/figures/
Model:   {demo}/models/unet.safetensors, described in {demo}/MODEL_CARD.md
{demo}/ is a repository that you can experiment in; the next demo replaces it:
  {enter}
  dvc exp run -S train.epochs=20 && dvc exp show
Its metrics/study* are copies of the results on real patients; everything else is synthetic."""


def main(demo: Path) -> None:
    begin = time.monotonic()
    demo.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(demo.with_name(f".{demo.name}.lock"), timeout=0):
            copy_project(demo)
            run_graph(demo)
    except Timeout:
        raise Refusal(f"another demo is running in {demo}; wait until it ends") from None
    print(summary(demo, time.monotonic() - begin))


if __name__ == "__main__":
    run(main)
