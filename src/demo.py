"""Run the whole graph on a small synthetic data set, in a copy of the project.

    python src/demo.py demo

The copy is a Git and DVC repository of its own, with the project's files as they are now: edits of
yours are in it. The checkout stays as it was, whatever DVC is doing there at the same time.
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from stage import Refusal, run

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
# In the copy Git is on its own: without the user's hooks and signing key, and without the variables
# that a hook of the checkout around it would hand down. The stages call `python`: this one.
ISOLATED = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")} | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "demo",
    "GIT_AUTHOR_EMAIL": "demo@example.org",
    "GIT_COMMITTER_NAME": "demo",
    "GIT_COMMITTER_EMAIL": "demo@example.org",
}


def git(*words: str, folder: Path | None = None) -> bytes:
    """Return what Git prints, in the current folder or isolated in another one.

    Refuses a failure with the reason that Git gives.
    """
    environment = ISOLATED if folder else None
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, env=environment, capture_output=True, check=True
        )
    except FileNotFoundError:
        raise Refusal("the program `git` is missing; install Git") from None
    except subprocess.CalledProcessError as error:
        reason = os.fsdecode(error.stderr).strip()
        raise Refusal(f"`git {words[0]}` failed in {folder or Path.cwd()}: {reason}") from None
    return done.stdout


def project_files() -> list[Path]:
    """Return the files of the project below the current folder: all but those that Git ignores."""
    try:
        listed = git("ls-files", "--cached", "--others", "--exclude-standard", "-z")
    except Refusal as refusal:
        raise Refusal(
            f"{refusal}\nThe demo copies the files that Git lists, so it needs a clone of the "
            "repository; in a folder without Git, run `git init && git add .` first"
        ) from None
    paths = sorted(Path(os.fsdecode(name)) for name in listed.split(b"\0") if name)
    if Path("dvc.yaml") not in paths:
        raise Refusal(
            f"Git does not list dvc.yaml in {Path.cwd()}: it ignores this folder, or the command "
            "was started elsewhere. Start it in the root of the project, in a clone of its own."
        )
    return [path for path in paths if path.is_file()]


def copy_project(folder: Path) -> None:
    """Make `folder` a repository of one commit that holds the project's files."""
    files = project_files()
    if folder.exists():
        shutil.rmtree(folder)
    for path in files:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, folder / path)
    git("init", "--quiet", "--initial-branch=main", folder=folder)
    git("add", "--all", folder=folder)
    git("commit", "--quiet", "--message=The project as it was copied", folder=folder)


def run_graph(folder: Path) -> None:
    """Run the graph with PARAMS up to the report; DVC's output goes to the terminal as it is."""
    overrides = [f"--set-param={name}={value}" for name, value in PARAMS.items()]
    command = [sys.executable, "-m", "dvc", "exp", "run", "--name", "demo", *overrides, "report"]
    ended = subprocess.run(command, cwd=folder, env=ISOLATED, check=False).returncode
    if ended:
        raise Refusal(
            f"`dvc exp run` ended with {ended} in {folder}; it says why above. Mend that and run "
            f"`make demo` again, or look around: `cd {folder}`, then `dvc repro report`."
        )
    git("commit", "--quiet", "--all", "--message=The results of the demo", folder=folder)


def main(demo: Path) -> None:
    begin = time.monotonic()
    demo.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(demo.with_name(f".{demo.name}.lock"), timeout=0):
            copy_project(demo)
            run_graph(demo)
    except Timeout:
        raise Refusal(f"another demo is at work in {demo}; wait until it has ended") from None
    print(
        f"""
The demo took {time.monotonic() - begin:.0f} s. Open its report in a browser:
  {(demo / "report/index.html").resolve()}
Scores:  {demo}/metrics/evaluate.json, and the tables in {demo}/metrics/evaluate/
Figures: {demo}/metrics/explore/figures/
Model:   {demo}/models/unet.safetensors, described in {demo}/MODEL_CARD.md
{demo}/ is a repository to play with, until the next demo replaces it: `cd {demo}`, then for example
`dvc exp run -S train.epochs=20` and `dvc exp show`. Its metrics/study* are of the real patients."""
    )


if __name__ == "__main__":
    run(main)
