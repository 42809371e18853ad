"""How a stage reads its params and how it reports errors."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from helpers import SRC, RunStage, params, section
from learning.params import AugmentParams, EncoderParams
from pipeline.params import Seed, check_params, read_yaml
from pipeline.refusals import Refusal, refuse
from scans.params import SplitParams
from scoring.params import EvaluateParams

seen: dict[str, Any] = {}


def main(source: Path, *, seed: Seed, encoder: EncoderParams, split: SplitParams) -> None:
    seen.update(source=source, seed=seed, encoder=encoder, split=split)
    if source.name == "refused":
        refuse([f"bad slice {number}" for number in range(12)], "Correct them.")
    if source.name == "full":
        raise OSError(28, "No space left on device", "data/raw")
    if source.name == "interrupted":
        raise KeyboardInterrupt
    if source.name == "bug":
        raise KeyError("a bug")


def test_sections_and_single_values_reach_main(run_stage: RunStage) -> None:
    seen.clear()
    assert run_stage(main, [Path("in")], seed=5, split__test_fold=3).code == 0
    assert seen == {
        "source": Path("in"),
        "seed": 5,
        "encoder": EncoderParams(name="mobilenet_v2", weights="imagenet", frozen=True),
        "split": section(SplitParams, test_fold=3),
    }
    with pytest.raises(ValidationError, match="frozen"):
        seen["split"].folds = 3


def test_an_integer_for_a_float_param_stays_an_integer() -> None:
    """The report shows params as params.yaml spells them."""
    assert repr(section(AugmentParams, rotate=15).rotate) == "15"
    assert repr(section(AugmentParams, rotate=15.0).rotate) == "15.0"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-05", 1e-5), ("1e-5", 1e-5), ("3E4", 3e4), ("1.5e-3", 1.5e-3), ("0.003", 0.003)],
)
def test_floats_in_scientific_notation_are_read_as_floats(
    tmp_path: Path, text: str, value: float
) -> None:
    """DVC writes small numbers this way."""
    params_file = tmp_path / "params.yaml"
    params_file.write_text(f"train:\n  learning_rate: {text}\n  name: 1e\n")
    assert read_yaml(params_file) == {"train": {"learning_rate": value, "name": "1e"}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no .*params.yaml in .*root"),
        (b"", "params.yaml has no sections"),
        (b"seed: 1 # \xe9\n", "params.yaml is not valid YAML"),
        (b"seed: [1\n", "params.yaml is not valid YAML: .* line 2"),
    ],
)
def test_an_invalid_params_file_is_an_error(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "params.yaml").write_bytes(content)
    with pytest.raises(Refusal, match=message):
        read_yaml(tmp_path / "params.yaml")


def test_one_error_lists_all_missing_params() -> None:
    types = {"seed": Seed, "split": SplitParams, "encoder": EncoderParams}
    values = {"split": {"by": "patient"}, "encoder": 3}
    with pytest.raises(Refusal) as refusal:
        check_params(types, values)
    names = ("seed", "split.folds", "split.test_fold", "split.inner_fold", "split.val_fraction")
    lines = str(refusal.value).splitlines()
    assert {f"missing param `{name}`" for name in names} < set(lines)
    assert "param `encoder` is 3; expected a section" in lines


def test_a_mapping_instead_of_a_value_is_an_error_that_names_the_param() -> None:
    values = params(evaluate__threshold={"a": 1})
    with pytest.raises(Refusal) as refusal:
        check_params({"evaluate": EvaluateParams}, values)
    *lines, _ = str(refusal.value).splitlines()
    assert lines
    assert all(line.startswith("param `evaluate.threshold` is {'a': 1}: ") for line in lines)


def test_an_error_lists_ten_problems_and_counts_the_rest(run_stage: RunStage) -> None:
    outcome = run_stage(main, [Path("refused")])
    assert outcome.code == 1
    assert outcome.error.count("bad slice") == 10
    assert "bad slice 9\n… and 2 more\nCorrect them.\n" in outcome.error
    assert "Traceback" not in outcome.error


def test_a_full_disk_is_reported_and_an_interrupt_exits_with_130(run_stage: RunStage) -> None:
    outcome = run_stage(main, [Path("full")])
    assert outcome.code == 1
    assert "No space left on device: 'data/raw'" in outcome.error
    outcome = run_stage(main, [Path("interrupted")])
    assert outcome.code == 130
    assert "interrupted" in outcome.error


def test_a_bug_keeps_its_traceback(run_stage: RunStage) -> None:
    with pytest.raises(KeyError, match="a bug"):
        run_stage(main, [Path("bug")])


def test_output_can_be_printed_in_any_encoding(tmp_path: Path) -> None:
    script = tmp_path / "stage.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(SRC)!r})\nfrom pipeline.command import run\n"
        "def main() -> None:\n    print('1 × cpu')\nrun(main)\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 \\xd7 cpu\n", "")
