"""Training under DVC is killed at random moments, resumes, and ends with the same bytes."""

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
EXPERIMENT = ("exp", "run", "--temp", "train")


def start(folder: Path, log: Path, *words: str) -> subprocess.Popen[bytes]:
    """Start dvc in a new process group; append its output to `log`."""
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", *words],
            cwd=folder,
            env=dvc_environment(),
            stdout=file,
            stderr=file,
            start_new_session=True,
            # A shell that runs the tests in the background may ignore SIGINT.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def trainers(parent: int) -> list[psutil.Process]:
    """Return the descendants of a process that run src/train.py, the outermost first."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a worker that has just ended
            if "src/train.py" in process.cmdline() and "python" in process.name():
                found.append(process)
    return found


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a condition holds; fail if the process ends first, or after two minutes."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"ended with {process.returncode}: {log.read_text()}"
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def kill(process: subprocess.Popen[bytes], victim: str) -> None:
    """Kill the training ("trainer"), dvc ("dvc"), or send both a signal, such as SIGINT."""
    if victim == "trainer":
        trainers(process.pid)[0].kill()
    elif victim == "dvc":
        process.kill()
    else:
        os.killpg(process.pid, signal.Signals[victim])  # as Ctrl-C does
    process.wait(60)


def n_epochs(log: Path) -> int:
    return log.read_text().count("\nepoch ") if log.exists() else 0


def n_waits(log: Path) -> int:
    """Return how many times a training printed that it is waiting for the checkpoint's lock."""
    return len(re.findall(r"\.dvc/tmp/training/\w+\.lock\b", log.read_text()))


def saved_at(repository: Path) -> float:
    """Return when the training last saved its checkpoint; 0 if it never has."""
    files = repository.glob(".dvc/tmp/training/*/checkpoint.pt")
    return max((path.stat().st_mtime for path in files), default=0)


def make_run(repository: Path, epochs: int) -> None:
    """Run all stages before the training."""
    (repository / "dvc.lock").unlink(missing_ok=True)
    values = params(**SMALL, train__epochs=epochs)
    (repository / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    done = dvc(repository, "repro", "split", "fetch_encoder")
    assert done.returncode == 0, done.stderr


def locked_outputs(repository: Path) -> Any:
    return yaml.safe_load((repository / "dvc.lock").read_text())["stages"]["train"]


def survive(repository: Path, kills: list[tuple[tuple[str, ...], str]], seed: int) -> list[int]:
    """Start and kill trainings, then finish one; return the epochs at which they resumed.

    Each is killed after one or two epochs, when it has saved a checkpoint. If only dvc is killed,
    its training continues as an orphan: with four kills the last run waits for it, otherwise it
    is killed too.
    """
    draw, log = random.Random(seed), repository.parent / "log"  # noqa: S311
    orphans: list[psutil.Process] = []
    for words, victim in kills:
        began, target = time.time(), n_epochs(log) + draw.randint(1, 2)
        process = start(repository, log, *words)

        def reached(began: float = began, target: int = target) -> bool:
            return n_epochs(log) >= target and saved_at(repository) > began

        wait_for(reached, process, log)
        time.sleep(draw.uniform(0, 0.3))
        orphans = trainers(process.pid)[:1] if victim == "dvc" else []
        for orphan in orphans:  # suspended until the last run waits for it
            orphan.suspend() if len(kills) == 4 else orphan.kill()
        kill(process, victim)
    final = start(repository, log, *REPRO)
    if len(kills) == 4:
        wait_for(lambda: n_waits(log) == 1, final, log)
        orphans[0].resume()
    assert final.wait(300) == 0, log.read_text()
    text = log.read_text()
    assert "Traceback" not in text
    return [int(epoch) for epoch in re.findall(r"resumed at epoch (\d+)", text)]


KILLS = [(REPRO, "trainer"), (EXPERIMENT, "SIGTERM"), (REPRO, "SIGINT"), (REPRO, "dvc")]


def check(repository: Path, resumed: list[int], n_kills: int) -> None:
    """Compare the result with that of an uninterrupted training."""
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


def test_training_survives_four_kills(repository: Path) -> None:
    """The last kill is of dvc only; the next run waits for the training that continues."""
    make_run(repository, epochs=16)
    resumed = survive(repository, KILLS, seed=1)
    log = (repository.parent / "log").read_text()
    assert n_waits(repository.parent / "log") == 1
    assert len(re.findall(r"train\.py: .*\b[1-9]\d* epochs?\b", log)) == 1  # after SIGINT
    assert log.count("`git restore metrics models MODEL_CARD.md dvc.lock && dvc checkout`") == 1
    check(repository, resumed, n_kills=4)


@pytest.mark.long
def test_training_survives_twenty_kills(repository: Path) -> None:
    make_run(repository, epochs=50)
    resumed = survive(repository, KILLS * 5, seed=2)
    check(repository, resumed, n_kills=20)


def test_a_second_acquire_stops_while_the_first_is_running(
    repository: Path, tmp_path: Path
) -> None:
    """If only dvc is killed, its stage continues. Two stages must not write to one folder."""
    log, data = tmp_path / "log", repository / "data"
    write_params(repository, acquire__dataset="phantom", phantom__patients=60)
    process = start(repository, log, "repro", "acquire")
    wait_for(lambda: any(data.glob(".raw.*.partial/raw/*")), process, log)
    process.kill()
    process.wait(60)
    again = dvc(repository, "repro", "acquire")
    assert again.returncode != 0
    advice = re.search(r"data/raw\b.*`kill (\d+)`", again.stderr)
    assert advice, again.stderr
    orphan = psutil.Process(int(advice[1]))
    assert "src/acquire.py" in orphan.cmdline()
    workers = orphan.children()
    orphan.kill()
    _, alive = psutil.wait_procs([orphan, *workers], timeout=60)
    assert not alive
    assert dvc(repository, "repro", "acquire").returncode == 0
    assert len(list(data.glob("raw/PHANTOM*"))) == 60
    assert not list(data.glob(".raw.*"))
    status = dvc(repository, "status", "acquire")
    assert "up to date" in status.stdout
