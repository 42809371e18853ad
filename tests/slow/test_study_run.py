"""A training of the study changes only the study's tables."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

from comparison.study_tables import Study, read_study
from helpers import (
    SMALL,
    clone_with_outputs,
    dvc_environment,
    git,
    put_into_larger_repository,
)


def test_a_training_changes_only_the_tables(committed_run: Path, tmp_path: Path) -> None:
    """The project is in a subfolder of a larger Git repository, with non-ASCII names."""
    folder = clone_with_outputs(committed_run, tmp_path / "größer und größer/brain")
    runs = {"tiny/fold/1": {"split": {"test_fold": 1}, "train": {"repeat": 3}}}
    (folder / "study/runs.yaml").write_text(yaml.safe_dump(runs))
    larger = put_into_larger_repository(folder)
    git(larger, "config", "user.name", "Jörg")

    def run(*names: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "study/run.py", *names]
        return subprocess.run(
            command, cwd=folder, env=dvc_environment(), capture_output=True, text=True, check=False
        )

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    changed = ["git", "status", "--short", "--untracked-files=all"]
    status = subprocess.run(changed, cwd=folder, capture_output=True, text=True, check=True).stdout
    tables = [folder / f"study/{name}.csv" for name in Study._fields]
    assert sorted(status.splitlines()) == sorted(
        f" M {path.relative_to(folder)}" for path in tables
    )
    study = read_study(*tables)
    row = study.trainings.loc["tiny/fold/1"]
    assert (row["split.test_fold"], row["train.repeat"]) == ("1", "3")
    assert row["train.image_size"] == str(SMALL["train__image_size"])
    assert row["minutes"] >= 0
    assert row["images_per_s"] > 0
    earlier = pd.read_csv(folder / "metrics/evaluate/per_patient.csv")
    tested = set(study.patients.query("training == 'tiny/fold/1'")["patient_id"])
    assert len(tested) == int(str(row["n_patients_test"])) > 0
    assert not tested & set(earlier.query("split == 'test'")["patient_id"])
    definitions = study.definitions.query("training == 'tiny/fold/1'")
    assert {"train", "test"} <= set(definitions["split"])

    assert run().stdout == ""  # no training is missing
    before = [path.read_bytes() for path in tables]
    done = run("tiny/fold/1")  # DVC restores it without training, and its cost is kept
    assert done.returncode == 0, done.stdout + done.stderr
    assert [path.read_bytes() for path in tables] == before
    done = run("tiny/fold/2")
    assert done.returncode == 2
    assert "does not list tiny/fold/2; it lists tiny/fold/1" in done.stderr
