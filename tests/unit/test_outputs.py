"""Outputs are written atomically, and parallel work returns its results in order."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from helpers import SRC
from pipeline.outputs import replacing, write_metrics
from pipeline.parallel import in_parallel
from pipeline.refusals import Refusal


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write(target: Path, text: str) -> None:
    target.mkdir()
    (target / "a.txt").write_text(text)


def test_a_new_folder_replaces_the_earlier_one(tmp_path: Path) -> None:
    target = tmp_path / "deep/out"
    for text in ("first", "second"):
        with replacing(target) as [partial]:
            write(partial, text)
    assert contents(tmp_path) == {"deep/out/a.txt": "second"}


def test_after_an_error_all_targets_are_unchanged(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    with replacing(first, second) as partials:
        for partial in partials:
            write(partial, "before")

    def interrupted() -> None:
        with replacing(first, second) as partials:
            write(partials[0], "after")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == {"first/a.txt": "before", "second/a.txt": "before"}


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    leftovers = [tmp_path / name for name in (".out.partial", f".out.{dead.pid}.partial")]
    for leftover in leftovers:
        write(leftover, "half")
    write(tmp_path / ".out.json.1.partial", "of another output")
    with replacing(tmp_path / "out") as [partial]:
        write(partial, "whole")
        assert not any(leftover.exists() for leftover in leftovers)
    other = {".out.json.1.partial/a.txt": "of another output"}
    assert contents(tmp_path) == {"out/a.txt": "whole", **other}


def test_leftovers_are_removed_even_if_another_process_has_the_same_id_now(tmp_path: Path) -> None:
    """For example in a container, where each run may be process 7."""
    leftover = tmp_path / f".out.{os.getpid()}.partial"
    write(leftover, "half")
    os.utime(leftover, (0, 0))
    with replacing(tmp_path / "out") as [partial]:
        write(partial, "whole")
    assert contents(tmp_path) == {"out/a.txt": "whole"}


WRITER = """
import sys, time
from pathlib import Path
from pipeline.outputs import replacing
with replacing(Path("out")) as [partial]:
    partial.mkdir()
    print("begun", flush=True)
    time.sleep(600)
"""


def test_writing_a_target_while_another_process_writes_it_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "out", "before")
    environment = {**os.environ, "PYTHONPATH": str(SRC)}
    command = [sys.executable, "-c", WRITER]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"begun\n"
        message = f"out: process {first.pid} is writing it; .*`kill {first.pid}`"
        with pytest.raises(Refusal, match=message), replacing(tmp_path / "out"):
            pass
        assert (tmp_path / f".out.{first.pid}.partial").is_dir()
        first.kill()
    with replacing(tmp_path / "out") as [partial]:
        write(partial, "after")
    assert contents(tmp_path) == {"out/a.txt": "after"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_hard_link_to_the_earlier_file_keeps_its_content(tmp_path: Path) -> None:
    """DVC may link outputs to its cache, so writing an output in place would change the cache."""
    target, cached = tmp_path / "metrics.json", tmp_path / "cached"
    write_metrics(target, {"iou": 0.25})
    cached.hardlink_to(target)
    write_metrics(target, {"iou": 0.5})
    assert json.loads(cached.read_text()) == {"iou": 0.25}


def test_metrics_are_rounded_and_nan_becomes_null(tmp_path: Path) -> None:
    write_metrics(tmp_path / "m.json", {"test": {"iou": 1 / 3, "dice": float("nan"), "n": 3}})
    assert (tmp_path / "m.json").read_text() == (
        '{\n  "test": {\n    "iou": 0.33333,\n    "dice": null,\n    "n": 3\n  }\n}\n'
    )


def double(number: int) -> int:
    if number < 0:
        raise Refusal("negative")
    return 2 * number


@pytest.mark.parametrize("unit", ["patient", "slice"])
def test_parallel_work_returns_results_in_order_and_passes_errors_on(unit: str) -> None:
    assert in_parallel(double, range(100), "test", unit) == list(range(0, 200, 2))
    assert in_parallel(double, [], "test", unit) == []
    with pytest.raises(Refusal, match="^negative$"):
        in_parallel(double, [1, -1, 2], "test", unit)


def killed(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_killed_worker_process_is_an_error() -> None:
    with pytest.raises(Refusal, match="^check: .*killed"):
        in_parallel(killed, range(5), "check")


def test_workers_end_if_their_parent_is_killed() -> None:
    code = "import time; from pipeline.parallel import in_parallel; "
    code += "in_parallel(time.sleep, [300] * 9, 'sleep')"
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    with subprocess.Popen([sys.executable, "-c", code], env=environment) as process:
        end = time.monotonic() + 60
        workers: list[psutil.Process] = []
        while not workers:
            assert time.monotonic() < end
            workers = psutil.Process(process.pid).children()
        process.kill()
    _, alive = psutil.wait_procs(workers, timeout=60)
    for worker in alive:
        worker.kill()
    assert not alive
