"""What is known of the real data set, through the real graph, where LGG_ARCHIVE names a copy."""

import os
from pathlib import Path

import pandas as pd
import pytest
import yaml

from conftest import ROOT, dvc, make_repository
from manifest import read_manifest

pytestmark = pytest.mark.skipif(
    not os.environ.get("LGG_ARCHIVE"),
    reason="LGG_ARCHIVE names no copy of the LGG MRI Segmentation data set",
)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository in which acquire to split and explore have run on all patients."""
    folder = make_repository(tmp_path_factory.mktemp("real") / "repository")
    done = dvc(folder, "repro", "split", "explore", LGG_ARCHIVE=os.environ["LGG_ARCHIVE"])
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_counts_are_those_published(real: Path) -> None:
    manifest = read_manifest(real / "data/manifest.csv")
    assert manifest["patient_id"].nunique() == 110
    assert len(manifest) == 3929
    assert manifest["abnormal"].sum() == 1373
    institutions = manifest.groupby("institution")["patient_id"].nunique().to_dict()
    assert institutions == {"CS": 16, "DU": 45, "EZ": 1, "FG": 14, "HT": 34}
    assert manifest["tumor_area"].sum() / (len(manifest) * 256 * 256) == pytest.approx(
        0.0103, abs=1e-4
    )


def test_sequences_are_missing_where_channels_are_equal(real: Path) -> None:
    patients = pd.read_csv(real / "data/patients.csv")
    assert len(patients) == 110
    assert patients["missing_post_contrast"].sum() == 10
    assert patients["missing_pre_contrast"].sum() == 6
    assert patients.query("missing_pre_contrast == 1")["missing_post_contrast"].all()
    assert patients["n_slices"].agg(["min", "median", "max"]).tolist() == [20, 33, 88]
    assert patients["n_abnormal"].agg(["min", "median", "max"]).tolist() == [3, 11, 37]
    assert patients["grade"].isna().sum() == 1


def test_the_split_is_by_patient_and_alike(real: Path) -> None:
    splits = read_manifest(real / "data/splits.csv")
    assert (splits.groupby("patient_id")["split"].nunique() == 1).all()
    assert splits.groupby("fold")["patient_id"].nunique().tolist() == [22] * 5
    n_patients = splits.groupby("split")["patient_id"].nunique().to_dict()
    assert n_patients == {"test": 22, "train": 75, "val": 13}


def test_dvc_lock_on_this_branch_is_what_came_out(real: Path) -> None:
    """Anyone with the data can verify it so."""
    ours = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    theirs = yaml.safe_load((real / "dvc.lock").read_text())["stages"]
    for stage in ("acquire", "restructure", "build_manifest", "explore", "split"):
        assert theirs[stage] == ours[stage], stage
    for path in sorted((ROOT / "metrics/explore").iterdir()):
        assert path.read_bytes() == (real / "metrics/explore" / path.name).read_bytes(), path.name
