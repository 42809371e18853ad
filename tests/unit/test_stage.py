"""The edge of a stage: what it takes from params.yaml, and what a person reads when it refuses."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from conftest import RunStage
from pipeline.command import Param, Refusal, interrupt_held_back, read_params, refuse

seen: dict[str, Any] = {}


def main(
    source: Path,
    *,
    seed: int,
    encoder_name: str,
    by: str,
    folds: Annotated[int, Field(ge=2)],
    test_fold: int,
    inner_fold: str,
    val_fraction: Annotated[float, Field(gt=0, lt=1)],
) -> None:
    seen.update(source=source, seed=seed, encoder_name=encoder_name, val_fraction=val_fraction)
    if source.name == "refused":
        refuse([f"bad slice {number}" for number in range(12)], "Correct them.")
    if source.name == "full":
        raise OSError(28, "No space left on device", "data/raw")
    if source.name == "interrupted":
        raise KeyboardInterrupt
    if source.name == "bug":
        raise KeyError("a mistake in the code")


NAMES = ("seed", "encoder.name", "split")


def test_sections_and_single_values_reach_main(run_stage: RunStage) -> None:
    seen.clear()
    assert run_stage(main, [Path("in")], *NAMES, seed=5).code == 0
    assert seen == {
        "source": Path("in"),
        "seed": 5,
        "encoder_name": "mobilenet_v2",
        "val_fraction": 0.15,
    }


def test_a_section_that_main_has_a_keyword_for_is_handed_over_whole(run_stage: RunStage) -> None:
    def takes_whole(source: Path, *, split: dict[str, Any], encoder_name: str) -> None:
        seen.update(source=source, split=split, encoder_name=encoder_name)

    names = ["split", "encoder.name"]
    assert run_stage(takes_whole, [Path("in")], *names, split__test_fold=3).code == 0
    expected = {"by": "patient", "folds": 5, "test_fold": 3, "inner_fold": "none"}
    assert seen["split"] == expected | {"val_fraction": 0.15}
    assert seen["encoder_name"] == "mobilenet_v2"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-05", 1e-5), ("1e-5", 1e-5), ("3E4", 3e4), ("1.5e-3", 1.5e-3), ("0.003", 0.003)],
)
def test_numbers_as_dvc_writes_them_are_numbers(tmp_path: Path, text: str, value: float) -> None:
    params_file = tmp_path / "params.yaml"
    params_file.write_text(f"train:\n  learning_rate: {text}\n  name: 1e\n")
    assert read_params(["train"], params_file) == {
        "learning_rate": Param("train.learning_rate", value),
        "name": Param("train.name", "1e"),
    }


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"split__fold": 3}, "unknown param `split.fold`; check its spelling"),
        (
            {"split__folds": 1},
            "param `split.folds` is 1: input should be greater than or equal to 2",
        ),
        ({"split__folds": "5"}, "param `split.folds` is '5': input should be a valid integer"),
        ({"split__folds": True}, "param `split.folds` is True: input should be a valid integer"),
        ({"split__val_fraction": float("nan")}, "param `split.val_fraction` is nan"),
        (
            {"split__val_fraction": 1.0},
            "param `split.val_fraction` is 1.0: input should be less than 1",
        ),
        ({"encoder__name": 18}, "param `encoder.name` is 18: input should be a valid string"),
    ],
)
def test_a_bad_param_is_refused_by_name_and_value(
    run_stage: RunStage, override: dict[str, Any], message: str
) -> None:
    outcome = run_stage(main, [Path("in")], *NAMES, **override)
    assert outcome.code == 1
    assert message in outcome.error
    assert "Correct it in params.yaml or in the -S override." in outcome.error
    assert "Traceback" not in outcome.error


def test_a_missing_params_file_and_section_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"no .*params.yaml in .*repository's root"):
        read_params(["seed"], tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("seed: 1\n")
    with pytest.raises(Refusal, match="lacks `split.folds`"):
        read_params(["split.folds"], tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("seed: 1\nsplit: {seed: 2}\n")
    with pytest.raises(Refusal, match="`split.seed` stands beside `seed`; drop it"):
        read_params(["seed", "split"], tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"seed: 1 # \xe9\n")
    with pytest.raises(Refusal, match="is not valid YAML"):
        read_params(["seed"], tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("seed: [1\n")
    with pytest.raises(Refusal, match="is not valid YAML: .* line 2"):
        read_params(["seed"], tmp_path / "params.yaml")


def test_ten_offenders_are_shown_and_the_rest_counted(run_stage: RunStage) -> None:
    outcome = run_stage(main, [Path("refused")], *NAMES)
    assert outcome.code == 1
    assert outcome.error.count("bad slice") == 10
    assert "bad slice 9\n… and 2 more\nCorrect them.\n" in outcome.error
    assert "Traceback" not in outcome.error


def test_a_full_disk_is_one_line_and_an_interrupt_leaves_with_130(run_stage: RunStage) -> None:
    outcome = run_stage(main, [Path("full")], *NAMES)
    assert outcome.code == 1
    assert "No space left on device: 'data/raw'" in outcome.error
    outcome = run_stage(main, [Path("interrupted")], *NAMES)
    assert outcome.code == 130
    assert "interrupted; run the same command again" in outcome.error


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupt_is_held_back_until_the_end_and_the_second_is_not() -> None:
    def press(times: int) -> None:
        with interrupt_held_back():
            for time in range(1, times + 1):
                os.kill(os.getpid(), signal.SIGINT)
                reached.append(time)

    reached: list[int] = []
    press(0)
    for times in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            press(times)
    assert reached == [1, 1]  # never 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("usual", [signal.SIG_IGN, lambda *_: None])
@pytest.mark.usefixtures("ctrl_c")
def test_who_has_seen_to_interrupts_is_left_alone(usual: Callable[..., None]) -> None:
    """As `nohup` does, which has them ignored."""
    signal.signal(signal.SIGINT, usual)
    with interrupt_held_back():
        assert signal.getsignal(signal.SIGINT) is usual
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is usual


def test_a_mistake_in_the_code_keeps_its_traceback(run_stage: RunStage) -> None:
    with pytest.raises(KeyError, match="a mistake in the code"):
        run_stage(main, [Path("bug")], *NAMES)
