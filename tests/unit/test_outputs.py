"""Outputs appear whole or not at all."""

import json
import os
import signal
from pathlib import Path

import pytest

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


def test_a_folder_replaces_the_earlier_one(tmp_path: Path) -> None:
    target = tmp_path / "deep/out"
    for text in ("first", "second"):
        with replacing(target) as [partial]:
            write(partial, text)
    assert contents(tmp_path) == {"deep/out/a.txt": "second"}


def test_an_error_leaves_every_target_as_it_was(tmp_path: Path) -> None:
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


def test_what_a_killed_run_left_is_no_obstacle(tmp_path: Path) -> None:
    write(tmp_path / ".out.partial", "half")
    with replacing(tmp_path / "out") as [partial]:
        write(partial, "whole")
    assert contents(tmp_path) == {"out/a.txt": "whole"}


def test_a_hard_link_to_the_earlier_file_keeps_its_bytes(tmp_path: Path) -> None:
    """As DVC's cache is linked: an output written in place would change the cache."""
    target, cached = tmp_path / "metrics.json", tmp_path / "cached"
    write_metrics(target, {"iou": 0.25})
    cached.hardlink_to(target)
    write_metrics(target, {"iou": 0.5})
    assert json.loads(cached.read_text()) == {"iou": 0.25}


def test_metrics_are_rounded_and_nan_is_null(tmp_path: Path) -> None:
    write_metrics(tmp_path / "m.json", {"test": {"iou": 1 / 3, "dice": float("nan"), "n": 3}})
    assert (tmp_path / "m.json").read_text() == (
        '{\n  "test": {\n    "iou": 0.33333,\n    "dice": null,\n    "n": 3\n  }\n}\n'
    )


def double(number: int) -> int:
    if number < 0:
        raise Refusal("negative")
    return 2 * number


@pytest.mark.parametrize("unit", ["patient", "slice"])
def test_work_in_parallel_comes_back_in_order_and_a_refusal_as_it_is(unit: str) -> None:
    assert in_parallel(double, range(100), "test", unit) == list(range(0, 200, 2))
    assert in_parallel(double, [], "test", unit) == []
    with pytest.raises(Refusal, match="^negative$"):
        in_parallel(double, [1, -1, 2], "test", unit)


def killed(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_a_process_that_is_killed_is_a_refusal() -> None:
    with pytest.raises(Refusal, match="^check: one of the processes was killed"):
        in_parallel(killed, range(5), "check")
