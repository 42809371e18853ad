"""Training is killed through DVC at random moments, goes on, and ends with the same bytes."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from helpers import dvc, dvc_environment, params, write_params

SMALL = {
    "acquire__dataset": "phantom",
    "phantom__patients": 4,
    "phantom__image_size": 48,
    "split__folds": 3,
    "encoder__weights": "none",
    "train__image_size": 64,
    "train__batch_size": 8,
    "compute__device": "cpu",
    "compute__precision": "32-true",
    "compute__workers": 1,
}
REPRO = ("repro", "train")
ASIDE = ("exp", "run", "--temp", "train")


def start(folder: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start dvc in a process group of its own, its output at the end of `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", *words],
            cwd=folder,
            env=dvc_environment(),
            stdout=file,
            stderr=file,
            start_new_session=True,
            # Whoever runs the tests in the background may have it ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def trainers(parent: int) -> list[psutil.Process]:
    """Return the processes below one that run src/train.py, the outermost first."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a worker that has just ended
            if "src/train.py" in process.cmdline() and "python" in process.name():
                found.append(process)
    return found


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a condition holds; fail when the process ends before, or takes two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}: {log.read_text()}"
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def kill(process: subprocess.Popen[bytes], victim: str) -> None:
    """Kill dvc, the training that it has started, or both by a signal to their group."""
    if victim == "trainer":
        trainers(process.pid)[0].kill()
    elif victim == "dvc":
        process.kill()
    else:
        os.killpg(process.pid, signal.Signals[victim])  # as Ctrl-C sends SIGINT
    process.wait(60)


def n_epochs(log: Path) -> int:
    return log.read_text().count("\nepoch ") if log.exists() else 0


def saved_at(repository: Path) -> float:
    """Return when the training last saved its checkpoint; 0 if it never has."""
    files = repository.glob(".dvc/tmp/training/*/checkpoint.pt")
    return max((path.stat().st_mtime for path in files), default=0)


def make_run(repository: Path, epochs: int) -> None:
    """Bring a repository to where training is what comes next."""
    (repository / "dvc.lock").unlink(missing_ok=True)
    values = params(**SMALL, train__epochs=epochs)
    (repository / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    done = dvc(repository, "repro", "split", "fetch_encoder")
    assert done.returncode == 0, done.stderr


def locked_outputs(repository: Path) -> Any:
    return yaml.safe_load((repository / "dvc.lock").read_text())["stages"]["train"]


def survive(repository: Path, kills: list[tuple[tuple[str, ...], str]], seed: int) -> list[int]:
    """Kill as listed, each after one or two epochs more; return the epochs that were resumed at.

    Each has saved a checkpoint by then. When dvc alone is killed, its training goes on by itself.
    """
    draw, log = random.Random(seed), repository.parent / "log"  # noqa: S311
    orphans: list[psutil.Process] = []
    for words, victim in kills:
        begin, wanted = time.time(), n_epochs(log) + draw.randint(1, 2)
        process = start(repository, log, *words)

        def far_enough(begin: float = begin, wanted: int = wanted) -> bool:
            return n_epochs(log) >= wanted and saved_at(repository) > begin

        wait_for(far_enough, process, log)
        time.sleep(draw.uniform(0, 0.3))
        orphans = trainers(process.pid)[:1] if victim == "dvc" else []
        for orphan in orphans:  # it goes on once somebody waits for it; in the long form never
            orphan.suspend() if len(kills) == 4 else orphan.kill()
        kill(process, victim)
    final = start(repository, log, *REPRO)
    if len(kills) == 4:
        wait_for(lambda: "; waiting for " in log.read_text(), final, log)
        orphans[0].resume()
    assert final.wait(300) == 0, log.read_text()
    text = log.read_text()
    assert "Traceback" not in text
    return [int(epoch) for epoch in re.findall(r"resumed at epoch (\d+)", text)]


KILLS = [(REPRO, "trainer"), (ASIDE, "SIGTERM"), (REPRO, "SIGINT"), (REPRO, "dvc")]


def check(repository: Path, resumed: list[int], n_kills: int) -> None:
    """Hold what has come of it against a training that nobody interrupts."""
    assert sum(epoch > 0 for epoch in resumed) >= 0.75 * n_kills
    assert resumed == sorted(resumed)
    killed = locked_outputs(repository)
    done = dvc(repository, "repro", "--force", "--single-item", "train")
    assert done.returncode == 0, done.stderr
    assert "resumed" not in done.stdout
    assert done.stdout.count("\nepoch ") == params_epochs(repository)
    assert locked_outputs(repository) == killed
    assert {out["path"] for out in killed["outs"]} == {
        "models/unet.safetensors",
        "metrics/train/metrics.json",
        "metrics/train/plots/metrics",
    }


def params_epochs(repository: Path) -> int:
    return int(yaml.safe_load((repository / "params.yaml").read_text())["train"]["epochs"])


def test_four_kills_leave_no_trace(repository: Path) -> None:
    """The last one kills dvc alone: the next run waits for the training that goes on."""
    make_run(repository, epochs=16)
    resumed = survive(repository, KILLS, seed=1)
    log = (repository.parent / "log").read_text()
    assert len(re.findall("another process trains for the same result; waiting for ", log)) == 1
    way_on = r"train.py: interrupted; [1-9]\d* epochs "
    assert len(re.findall(way_on, log)) == 1  # SIGINT's
    assert log.count("`git restore metrics models MODEL_CARD.md dvc.lock && dvc checkout`") == 1
    check(repository, resumed, n_kills=4)


@pytest.mark.long
def test_twenty_kills_leave_no_trace(repository: Path) -> None:
    make_run(repository, epochs=50)
    resumed = survive(repository, KILLS * 5, seed=2)
    check(repository, resumed, n_kills=20)


def test_of_two_processes_that_acquire_the_second_is_refused(
    repository: Path, tmp_path: Path
) -> None:
    """Killing dvc alone leaves its stage at work: what both write must not become one data set."""
    log, data = tmp_path / "log", repository / "data"
    write_params(repository, acquire__dataset="phantom", phantom__patients=60)
    process = start(repository, log, "repro", "acquire")
    wait_for(lambda: any(data.glob(".raw.*.partial/raw/*")), process, log)
    process.kill()
    process.wait(60)
    again = dvc(repository, "repro", "acquire")
    assert again.returncode != 0
    told = re.search(r"data/raw: process (\d+) is writing it; .*`kill (\d+)`", again.stderr)
    assert told, again.stderr
    assert told[1] == told[2]
    orphan = psutil.Process(int(told[1]))
    orphan.kill()
    orphan.wait(60)
    assert dvc(repository, "repro", "acquire").returncode == 0
    assert len(list(data.glob("raw/PHANTOM*"))) == 60
    assert not list(data.glob(".raw.*"))
    status = dvc(repository, "status", "acquire")
    assert "up to date" in status.stdout
