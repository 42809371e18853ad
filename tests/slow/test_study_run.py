"""A training of the study leaves its tables, whole, and nothing else."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

import run
from conftest import SMALL, clone_with_outputs, dvc_environment, put_into_larger_repository


def test_a_run_leaves_its_tables_and_nothing_else(committed_run: Path, tmp_path: Path) -> None:
    """Also where the project is a subfolder of a larger Git repository."""
    folder = clone_with_outputs(committed_run, tmp_path / "larger/brain")
    wanted = {"tiny/fold/1": {"split": {"test_fold": 1}, "train": {"repeat": 3}}}
    (folder / "study/runs.yaml").write_text(yaml.safe_dump(wanted))
    put_into_larger_repository(folder)

    def take(*names: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "study/run.py", *names]
        return subprocess.run(
            command, cwd=folder, env=dvc_environment(), capture_output=True, text=True, check=False
        )

    done = take()
    assert done.returncode == 0, done.stdout + done.stderr
    changed = ["git", "status", "--short", "--untracked-files=all"]
    status = subprocess.run(changed, cwd=folder, capture_output=True, text=True, check=True).stdout
    kept = folder / "study/runs/tiny/fold/1"
    assert status.splitlines() == [
        f"?? {path.relative_to(folder)}" for path in sorted(kept.iterdir())
    ]
    assert {path.name for path in kept.iterdir()} == {*run.TABLES.values(), "cost.json"}
    params = yaml.safe_load((kept / "params.yaml").read_text())
    assert params["split"]["test_fold"] == 1
    assert params["train"]["repeat"] == 3
    assert params["train"]["image_size"] == SMALL["train__image_size"]
    tables = [pd.read_csv(each / "per_patient.csv") for each in (kept, folder / "metrics/evaluate")]
    tested = [set(table["patient_id"][table["split"] == "test"]) for table in tables]
    assert tested[0]
    assert not tested[0] & tested[1]
    assert json.loads((kept / "cost.json").read_text())["epochs"] == 1

    assert take().stdout == ""  # nothing lacks
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    done = take("tiny/fold/1")  # DVC has it: nothing is trained, and its cost stays
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    done = take("tiny/fold/2")
    assert done.returncode == 2
    assert "has no tiny/fold/2, but tiny/fold/1" in done.stderr
