"""Run the graph up to its report on a small synthetic data set, in a copy of the project.

    python src/demo.py demo

The copy is a separate Git and DVC repository with the project's files as they are now, including
your edits. Nothing else in the checkout changes, and DVC may be busy there at the same time.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

from pipeline.command import run
from pipeline.refusals import Refusal

# Small, and with one thread: several would wait for each other whenever the machine is busy.
# Without a download the encoder has random weights, so it learns too.
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
# Untracked files are copied from these folders alone: elsewhere they may be scans, or passwords.
CODE = (".ci", ".github", "benchmarks", "docs", "src", "study", "tests")
MARKER = ".git/made-by-demo"  # what has it may be replaced

# Settings under which nobody's own settings of Git and DVC apply.
DEFAULTS = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",  # the user's trust in this folder is among those ignored
    "GIT_CONFIG_VALUE_0": "*",
    "DVC_GLOBAL_CONFIG_DIR": "/nonexistent",
    "DVC_SYSTEM_CONFIG_DIR": "/nonexistent",
}
# A Git hook sets GIT_DIR and the like, and DVC sets DVC_ROOT for a stage: neither is for the copy.
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_"))}
ISOLATED = {
    **CLEAN,
    **DEFAULTS,
    # The stages call `python`: it has to be this one.
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    "GIT_AUTHOR_NAME": "demo",
    "GIT_AUTHOR_EMAIL": "demo@example.org",
    "GIT_COMMITTER_NAME": "demo",
    "GIT_COMMITTER_EMAIL": "demo@example.org",
}


def git(*words: str, folder: Path | None = None) -> bytes:
    """Run Git in the current folder, or isolated in `folder`, and return its output.

    Raises Refusal with Git's own message when it fails.
    """
    try:
        done = subprocess.run(
            ["git", *words],
            cwd=folder,
            env=ISOLATED if folder else CLEAN,
            capture_output=True,
            check=True,
        )
    except FileNotFoundError:
        raise Refusal("the program `git` is missing; install Git") from None
    except subprocess.CalledProcessError as error:
        reason = os.fsdecode(error.stderr).strip()
        raise Refusal(f"`git {words[0]}` failed in {folder or Path.cwd()}: {reason}") from None
    return done.stdout


def project_files() -> list[Path]:
    """Return the files of the project below the current folder, new ones in CODE included."""
    try:
        listed = git("ls-files", "-z") + git(
            "ls-files", "--others", "--exclude-standard", "-z", "--", *CODE
        )
    except Refusal as refusal:
        raise Refusal(
            f"{refusal}\nThe demo copies the files that Git lists, so it needs a clone of the "
            "repository; in a folder without Git, run `git init && git add .` first"
        ) from None
    paths = sorted(Path(os.fsdecode(name)) for name in listed.split(b"\0") if name)
    if Path("dvc.yaml") not in paths:
        raise Refusal(
            f"Git does not list dvc.yaml in {Path.cwd()}: it ignores this folder, or the command "
            "was started elsewhere. Start it in the root of a clone."
        )
    return [path for path in paths if path.is_file()]


def copy_project(folder: Path) -> None:
    """Make `folder` a repository of one commit that holds the project's files.

    An earlier copy is replaced. Whatever else is there is refused.
    """
    files = project_files()
    if folder.is_symlink() or (folder.exists() and not (folder / MARKER).exists()):
        raise Refusal(f"{folder.absolute()} was not made by the demo; move it, or remove it")
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    git("init", "--quiet", "--initial-branch=main", folder=folder)
    (folder / MARKER).touch()
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, folder / path)
    git("add", "--all", folder=folder)
    git("commit", "--quiet", "--message=The project as it was copied", folder=folder)


def run_graph(folder: Path) -> None:
    """Run the graph with PARAMS up to the report; DVC's output goes to the terminal as it is."""
    overrides = [f"--set-param={name}={value}" for name, value in PARAMS.items()]
    command = [sys.executable, "-m", "dvc", "exp", "run", "--name", "demo", *overrides, "report"]
    with subprocess.Popen(command, cwd=folder, env=ISOLATED) as running:
        try:
            running.wait()
        except KeyboardInterrupt:
            running.wait()  # it got Ctrl-C too, and must not write after this has ended
            raise
    if running.returncode:
        raise Refusal(
            f"`dvc exp run` ended with {running.returncode} in {folder.absolute()}; it says why "
            f"above. Fix that in {Path.cwd()}, not in the copy, and run `make demo` again."
        )
    git("commit", "--quiet", "--all", "--message=The results of the demo", folder=folder)


def summary(demo: Path, seconds: float) -> str:
    """Return what to look at, and how to go on."""
    scores = json.loads((demo / "metrics/evaluate.json").read_text(encoding="utf-8"))["test"]
    activate = Path(os.path.relpath(sys.prefix)) / "bin/activate"
    enter = f"source {activate} && cd {demo}" if activate.exists() else f"cd {demo}"
    return f"""
The demo took {seconds:.0f} s. Test IoU {scores["iou"]:.3f}, mean Dice by patient \
{scores["dice_patient_mean"]:.3f}, n = {scores["n_patients"]} phantoms.
Open its report in a browser:
  {(demo / "report/index.html").absolute()}
Scores:  {demo}/metrics/evaluate.json, and the tables in {demo}/metrics/evaluate/
Figures: {demo}/metrics/explore/figures/
Model:   {demo}/models/unet.safetensors, described in {demo}/MODEL_CARD.md
{demo}/ is a repository to play with, until the next demo replaces it:
  {enter}
  dvc exp run -S train.epochs=20 && dvc exp show
Only its metrics/study* are of the real patients."""


def main(demo: Path) -> None:
    begin = time.monotonic()
    demo.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(demo.with_name(f".{demo.name}.lock"), timeout=0):
            copy_project(demo)
            run_graph(demo)
    except Timeout:
        raise Refusal(f"another demo is running in {demo}; wait until it has ended") from None
    print(summary(demo, time.monotonic() - begin))


if __name__ == "__main__":
    run(main)
