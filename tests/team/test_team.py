"""Run each block of commands in docs/team.md as written, except for the example addresses."""

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from helpers import ROOT, dvc, ran
from team_page import (
    BLOCKS,
    PAGE,
    REPOSITORY,
    TABLES,
    block,
    clone_with_origin,
    objects,
    scores,
    shell,
)


@pytest.fixture
def brain(committed_run: Path, tmp_path: Path) -> Path:
    """Return a repository in which the graph has run; the test may change it."""
    return clone_with_origin(committed_run, tmp_path / "brain", tmp_path / "brain.git")


def git_status(folder: Path) -> str:
    return shell(folder, "git status --porcelain")


def test_an_experiment_is_run_shared_committed_and_reverted(brain: Path, tmp_path: Path) -> None:
    diff = shell(brain, block("dvc exp diff"))
    assert re.search(r"train\.learning_rate\s+0\.003\s+0\.001\s", diff)
    assert re.search(r"metrics/train/metrics\.json\s+train\.loss\s", diff)
    shown = shell(brain, block("dvc exp show"))
    assert "lower-rate" in shown
    assert "test.dice_patient_mean" in shown
    assert git_status(brain) == ""
    assert "up to date" in shell(brain, "dvc status")

    shell(brain, block("dvc push --run-cache\n") + block("dvc exp push"))
    teammate = tmp_path / "teammate/brain"
    teammate.parent.mkdir()
    (tmp_path / "teammate/dvc-remote").symlink_to(tmp_path / "dvc-remote")
    shell(tmp_path / "teammate", f"git clone -q {tmp_path}/brain.git brain")
    shell(teammate, block("dvc exp pull"))
    params = yaml.safe_load((teammate / "params.yaml").read_text())
    assert params["train"]["learning_rate"] == 0.001
    assert ran(dvc(teammate, "repro")) == []

    shell(brain, block("Learning rate 1e-3") + block("dvc exp branch"))
    assert git_status(brain) == ""
    assert shell(brain, "git log -1 --format=%s") == "Learning rate 1e-3\n"
    assert "learning_rate: 0.001" in shell(brain, "git show try-lower-rate:params.yaml")
    assert "up to date" in shell(brain, "dvc status")

    model = brain / "models/unet.safetensors"
    new = model.read_bytes()
    assert len(shell(brain, block("git log --oneline")).splitlines()) == 3
    old = (brain / "unet-before.safetensors").read_bytes()
    assert old != new
    shell(brain, block("git switch --detach"))
    assert model.read_bytes() == old
    assert "up to date" in shell(brain, "dvc status")
    shell(brain, "git switch -; dvc checkout")
    assert model.read_bytes() == new

    dry_run, delete = block("dvc gc").splitlines()
    cache = brain / ".dvc/cache/files/md5"
    before_gc = objects(cache)
    shell(brain, dry_run)
    assert objects(cache) == before_gc
    shell(brain, delete)
    kept = {path.read_bytes() for path in objects(cache)}
    assert new in kept
    assert old not in kept  # its commit is not the last one of a branch; the remote has it
    assert "up to date" in shell(brain, "dvc status")
    shell(brain, "git switch -q --detach HEAD~1; dvc pull")
    assert model.read_bytes() == old


def test_two_branches_are_compared(brain: Path) -> None:
    diff = shell(brain, block("dvc metrics diff"))
    assert re.search(r"params\.yaml\s+evaluate\.threshold\s+0\.5\s+0\.4", diff)
    rows = re.findall(r"metrics/evaluate\.json\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\n", diff)
    assert ("test.threshold", "0.5", "0.4", "-0.1") in rows
    for name, before, after, change in rows:
        split, key = name.split(".")
        score = scores(brain)[split][key]
        assert after == ("-" if score is None else str(score))
        assert before != after
        assert all(len(number.partition(".")[2]) <= 5 for number in (before, after, change))
    assert (brain / "dvc_plots/index.html").is_file()
    page = (brain / "dvc_plots/index.html").read_text()
    assert "main" in page
    assert "workspace" in page
    assert git_status(brain) == ""


def learning_rates(brain: Path) -> set[float]:
    """Return the learning rates of the experiments in `dvc exp show`."""
    shown = json.loads(shell(brain, "dvc exp show --json 2> /dev/null"))
    [baseline] = [row for row in shown if row["rev"] != "workspace"]
    runs = [row["revs"][0]["data"] for row in baseline["experiments"] or []]
    return {run["params"]["params.yaml"]["data"]["train"]["learning_rate"] for run in runs}


def test_a_grid_runs_from_the_queue_with_one_gpu_per_worker(brain: Path) -> None:
    add, start, status = block("dvc exp run --queue").splitlines()
    shell(brain, add)
    assert status == "dvc queue status"
    assert start == "dvc queue start --jobs 2"
    shell(brain, block("CUDA_VISIBLE_DEVICES"))  # two workers, each with its own GPU number
    gpus, end = set(), time.monotonic() + 900
    while "Queued" in (tasks := shell(brain, status)) or "Running" in tasks:
        assert time.monotonic() < end, tasks
        for _ in range(10):  # cheaper than `dvc queue status`
            gpus |= {gpu for gpu in map(gpu_of, trainers(brain)) if gpu}
            time.sleep(0.2)
    assert tasks.count("Success") == 2, tasks
    assert gpus == {"0", "1"}
    # DVC sometimes loses one of two experiments that end together; the page says to repeat it.
    if lost := {1e-4, 3e-4} - learning_rates(brain):
        assert len(lost) == 1
        again = f"exp run --temp -S train.learning_rate={lost.pop()} -S train.epochs=1"
        assert "train" not in ran(dvc(brain, *again.split()))
    assert learning_rates(brain) == {1e-4, 3e-4}
    assert git_status(brain) == ""
    shell(brain, start)  # the queue is empty
    shell(brain, block("dvc queue remove"))
    assert "Success" not in shell(brain, status)
    assert dvc(brain, "exp", "list", "--all-commits").stdout == ""


def test_moving_the_cache_lets_temp_experiments_run_in_a_non_ascii_folder(tmp_path: Path) -> None:
    folder = tmp_path / "Jörg/brain"
    folder.mkdir(parents=True)
    graph = {"stages": {"copy": {"cmd": "cp params.yaml out", "params": ["x"], "outs": ["out"]}}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump(graph))
    (folder / "params.yaml").write_text("x: 1\n")
    shell(
        folder, "git init -q; git config user.name Jörg; dvc init -q; git add -A; git commit -qm x"
    )
    experiment = ["exp", "run", "--temp", "--set-param", "x=2"]
    done = dvc(folder, *experiment)
    assert done.returncode != 0
    assert "'ascii' codec can't encode character" in done.stderr
    assert "`'ascii' codec can't encode character`" in PAGE
    shell(folder, block("cache.dir"), {"/srv/dvc-cache": str(tmp_path / "cache")})
    shell(folder, block("git config --global user.name"))
    assert "Ran experiment(s)" in shell(folder, "dvc " + " ".join(experiment))


def trainers(folder: Path) -> list[psutil.Process]:
    """Return the processes that run src/train.py in the repository or below it."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command, place = process.info["cmdline"] or [], process.info["cwd"] or ""
        if "src/train.py" in command and place.startswith(str(folder)):
            found.append(process)
    return found


def gpu_of(process: psutil.Process) -> str:
    try:
        return str(process.environ().get("CUDA_VISIBLE_DEVICES", ""))
    except psutil.Error:  # the process has just ended
        return ""


def test_a_model_version_can_be_downloaded_without_a_clone(brain: Path, tmp_path: Path) -> None:
    # The default remote is a relative path, which means another folder in `stranger`.
    shell(brain, f"dvc remote modify beside url '{tmp_path}/shared'; git commit -qam Remote")
    shell(brain, "git push -q; " + block("gto register"))
    assert "unet@v1.0.0" in shell(brain, f"git ls-remote --tags '{tmp_path}/brain.git'")
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    shell(stranger, block("dvc artifacts get"), {REPOSITORY: str(tmp_path / "brain.git")})
    for name in ("unet", "encoder"):
        found = (stranger / f"{name}.safetensors").read_bytes()
        assert found == (brain / f"models/{name}.safetensors").read_bytes()


def test_dvc_names_the_process_that_locks_the_repository(brain: Path) -> None:
    rwlock = brain / ".dvc/tmp/rwlock"

    def repro_locked_by(pid: int) -> str:
        info = {"pid": pid, "cmd": "dvc repro"}
        rwlock.write_text(json.dumps({"write": {str(brain / "data/predictions"): info}}))
        done = dvc(brain, "repro", "--force", "--single-item", "evaluate")
        return " ".join((done.stdout + done.stderr).split())

    message = repro_locked_by(os.getpid())
    assert f"is busy, it is being blocked by: (PID {os.getpid()}): dvc repro" in message
    assert "is busy, it is being blocked by: (PID 123): dvc repro" in TABLES
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert "Auto removed it from the lock file" in repro_locked_by(ended.pid)
    rwlock.write_text("{")
    corrupted = "Unable to read RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted"
    assert corrupted in TABLES
    done = dvc(brain, "repro", "--force", "--single-item", "evaluate")
    assert corrupted in " ".join(done.stderr.split())
    # `pgrep` would find the DVC processes of other tests.
    shell(brain, block("pgrep").replace("pgrep", "false pgrep"))
    assert not rwlock.exists()
    assert ran(dvc(brain, "repro", "--force", "--single-item", "evaluate")) == ["evaluate"]


def test_every_block_of_the_page_is_run_by_a_test() -> None:
    """This module and test_remotes call `block` with a command of each block."""
    commands: set[str] = set()
    for name in ("test_team", "test_remotes"):
        tree = ast.parse((ROOT / f"tests/team/{name}.py").read_text())
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        commands |= {
            str(argument.value)
            for call in calls
            if getattr(call.func, "id", "") == "block"
            for argument in call.args
            if isinstance(argument, ast.Constant)
        }
    assert {block(command) for command in commands} == set(BLOCKS)
    assert len(BLOCKS) == PAGE.count("```sh\n") >= 20


def test_versions_in_the_docs_are_those_of_the_development_requirements() -> None:
    named = re.findall(r"[\w-]+==[\w.]+\w", PAGE)
    pins = (ROOT / "requirements-dev.txt").read_text().split()
    assert {pin.partition("==")[0] for pin in named} >= {"dvc-s3", "dvc-ssh"}
    assert set(named) <= set(pins)
