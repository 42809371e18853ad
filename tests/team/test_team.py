"""docs/team.md: each block of its commands is run as it stands, but for addresses."""

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
from team_page import PAGE, REPOSITORY, blocks, clone_with_origin, objects, scores, shell


@pytest.fixture
def brain(committed_run: Path, tmp_path: Path) -> Path:
    """Return a repository in which the graph has run, that a test may change."""
    return clone_with_origin(committed_run, tmp_path / "brain", tmp_path / "brain.git")


def git_status(folder: Path) -> str:
    return shell(folder, "git status --porcelain")


def test_an_experiment_is_tried_seen_and_taken_over(brain: Path, tmp_path: Path) -> None:
    try_it, see_it = blocks("Try something")
    told = shell(brain, try_it)
    assert re.search(r"train\.learning_rate\s+0\.003\s+0\.001\s", told)
    assert re.search(r"metrics/train/metrics\.json\s+train\.loss\s", told)
    shown = shell(brain, see_it)
    assert "lower-rate" in shown
    assert "test.dice_patient_mean" in shown
    assert git_status(brain) == ""
    assert "up to date" in shell(brain, "dvc status")

    push, take = blocks("Hand an experiment to a teammate")
    shell(brain, blocks("Share data and models")[0] + push)
    teammate = tmp_path / "teammate/brain"
    teammate.parent.mkdir()
    (tmp_path / "teammate/dvc-remote").symlink_to(tmp_path / "dvc-remote")
    shell(tmp_path / "teammate", f"git clone -q {tmp_path}/brain.git brain")
    shell(teammate, take)
    params = yaml.safe_load((teammate / "params.yaml").read_text())
    assert params["train"]["learning_rate"] == 0.001
    assert ran(dvc(teammate, "repro")) == []

    apply_it, branch_it = blocks("Take a result over")
    shell(brain, apply_it + branch_it)
    assert git_status(brain) == ""
    assert shell(brain, "git log -1 --format=%s") == "Learning rate 1e-3\n"
    assert "learning_rate: 0.001" in shell(brain, "git show try-lower-rate:params.yaml")
    assert "up to date" in shell(brain, "dvc status")

    log, go_back = blocks("Go back to last month's model")
    model = brain / "models/unet.safetensors"
    now = model.read_bytes()
    assert len(shell(brain, log).splitlines()) == 3
    before = (brain / "unet-before.safetensors").read_bytes()
    assert before != now
    shell(brain, go_back)
    assert model.read_bytes() == before
    assert "up to date" in shell(brain, "dvc status")
    shell(brain, "git switch -; dvc checkout")
    assert model.read_bytes() == now

    look, free = "".join(blocks("Free disk")).splitlines()
    cache = brain / ".dvc/cache/files/md5"
    before_gc = objects(cache)
    shell(brain, look)
    assert objects(cache) == before_gc
    shell(brain, free)
    kept = {path.read_bytes() for path in objects(cache)}
    assert now in kept
    assert before not in kept  # of a commit that no branch ends with; the remote has it
    assert "up to date" in shell(brain, "dvc status")
    shell(brain, "git switch -q --detach HEAD~1; dvc pull")
    assert model.read_bytes() == before


def test_two_branches_are_compared(brain: Path) -> None:
    [block] = blocks("Compare two branches")
    told = shell(brain, block)
    assert re.search(r"params\.yaml\s+evaluate\.threshold\s+0\.5\s+0\.4", told)
    rows = re.findall(r"metrics/evaluate\.json\s+(\S+)\s+(\S+)\s+(\S+)\s+(\S+)\n", told)
    assert ("test.threshold", "0.5", "0.4", "-0.1") in rows
    for name, before, after, change in rows:
        split, key = name.split(".")
        assert after == (
            "-" if scores(brain)[split][key] is None else str(scores(brain)[split][key])
        )
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
    [baseline] = [each for each in shown if each["rev"] != "workspace"]
    runs = [each["revs"][0]["data"] for each in baseline["experiments"] or []]
    return {run["params"]["params.yaml"]["data"]["train"]["learning_rate"] for run in runs}


def test_a_grid_runs_from_the_queue_each_with_its_own_gpu(brain: Path) -> None:
    queue, clear = blocks("Sweep a grid")
    add, start, status = queue.splitlines()
    shell(brain, add)
    assert status == "dvc queue status"
    assert start == "dvc queue start --jobs 2"
    [per_gpu] = blocks("A GPU for each worker")
    shell(brain, per_gpu)  # two workers too, and each says which GPU it was given
    gpus, end = set(), time.monotonic() + 300
    while "Queued" in (told := shell(brain, status)) or "Running" in told:
        assert time.monotonic() < end, told
        for _ in range(10):  # cheaper than another look at the queue
            gpus |= {gpu for gpu in map(gpu_of, trainers(brain)) if gpu}
            time.sleep(0.2)
    assert told.count("Success") == 2, told
    assert gpus == {"0", "1"}
    if lost := {1e-4, 3e-4} - learning_rates(brain):  # as the page says, with its remedy
        assert len(lost) == 1
        again = f"exp run --temp -S train.learning_rate={lost.pop()} -S train.epochs=1"
        assert "train" not in ran(dvc(brain, *again.split()))
    assert learning_rates(brain) == {1e-4, 3e-4}
    assert git_status(brain) == ""
    shell(brain, start)  # nothing is left to do
    shell(brain, clear)
    assert "Success" not in shell(brain, status)
    assert dvc(brain, "exp", "list", "--all-commits").stdout == ""


def test_experiments_run_aside_below_a_folder_with_any_name_once_the_cache_is_moved(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "Jörg/brain"
    folder.mkdir(parents=True)
    graph = {"stages": {"copy": {"cmd": "cp params.yaml out", "params": ["x"], "outs": ["out"]}}}
    (folder / "dvc.yaml").write_text(yaml.safe_dump(graph))
    (folder / "params.yaml").write_text("x: 1\n")
    shell(
        folder, "git init -q; git config user.name Jörg; dvc init -q; git add -A; git commit -qm x"
    )
    aside = ["exp", "run", "--temp", "--set-param", "x=2"]
    done = dvc(folder, *aside)
    assert done.returncode != 0
    assert "'ascii' codec can't encode character" in done.stderr
    assert "`'ascii' codec can't encode character`" in PAGE
    cache, name = blocks("Non-ASCII paths and names")
    shell(folder, cache, {"/srv/dvc-cache": str(tmp_path / "cache")})
    shell(folder, name)
    assert "Ran experiment(s)" in shell(folder, "dvc " + " ".join(aside))


def trainers(folder: Path) -> list[psutil.Process]:
    """Return the processes that train in an experiment of the repository."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        command, place = process.info["cmdline"] or [], process.info["cwd"] or ""
        if "src/train.py" in command and place.startswith(str(folder)):
            found.append(process)
    return found


def gpu_of(process: psutil.Process) -> str:
    try:
        return str(process.environ().get("CUDA_VISIBLE_DEVICES", ""))
    except psutil.Error:  # it has just ended
        return ""


def test_a_version_is_handed_to_somebody_without_a_clone(brain: Path, tmp_path: Path) -> None:
    register, take = blocks("Give the model a version")
    # The folder beside the clone is not beside the stranger: a remote has an address of its own.
    shell(brain, f"dvc remote modify beside url '{tmp_path}/shared'; git commit -qam Remote")
    shell(brain, "git push -q; " + register)
    assert "unet@v1.0.0" in shell(brain, f"git ls-remote --tags '{tmp_path}/brain.git'")
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    shell(stranger, take, {REPOSITORY: str(tmp_path / "brain.git")})
    for name in ("unet", "encoder"):
        found = (stranger / f"{name}.safetensors").read_bytes()
        assert found == (brain / f"models/{name}.safetensors").read_bytes()


def test_a_busy_repository_says_who_is_at_work(brain: Path) -> None:
    [block] = blocks("The repository is busy")
    rwlock = brain / ".dvc/tmp/rwlock"
    table = PAGE.partition("## The repository is busy")[2]

    def held_by(pid: int) -> str:
        info = {"pid": pid, "cmd": "dvc repro"}
        rwlock.write_text(json.dumps({"write": {str(brain / "data/predictions"): info}}))
        done = dvc(brain, "repro", "--force", "--single-item", "evaluate")
        return " ".join((done.stdout + done.stderr).split())

    told = held_by(os.getpid())
    assert f"is busy, it is being blocked by: (PID {os.getpid()}): dvc repro" in told
    assert "is busy, it is being blocked by: (PID 123): dvc repro" in table
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert "Auto removed it from the lock file" in held_by(ended.pid)
    rwlock.write_text("{")
    corrupted = "Unable to read RWLock-file '.dvc/tmp/rwlock'. JSON structure is corrupted"
    assert corrupted in table
    done = dvc(brain, "repro", "--force", "--single-item", "evaluate")
    assert corrupted in " ".join(done.stderr.split())
    shell(brain, block.replace("pgrep", "false pgrep"))  # other tests may be at work
    assert not rwlock.exists()
    assert ran(dvc(brain, "repro", "--force", "--single-item", "evaluate")) == ["evaluate"]


def test_every_block_of_the_page_is_run_by_a_test() -> None:
    """By one of this module or of test_remotes, which name the heading that it stands under."""
    tests = "".join(
        (ROOT / f"tests/team/{name}.py").read_text() for name in ("test_team", "test_remotes")
    )
    headings = [each for each in re.findall(r"^#+ (.*)$", PAGE, re.M) if blocks(each)]
    assert len(headings) >= 12
    for heading in headings:
        assert f'blocks("{heading}")' in tests, heading
    assert sum(len(blocks(heading)) for heading in headings) == PAGE.count("```sh\n")


def test_the_versions_that_pages_name_are_those_that_the_tests_ran_with() -> None:
    named = re.findall(r"pip install (\S+==[^\s`]+)", PAGE + (ROOT / "README.md").read_text())
    named += re.findall(r"with `(\S+==[^\s`]+)`", (ROOT / "README.md").read_text())
    pins = (ROOT / "requirements-dev.txt").read_text().split()
    assert len(named) == 4
    assert set(named) <= set(pins)
