"""Run the graph on the phantom in each layout, and read real patients converted to NIfTI."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
from nibabel.nifti1 import Nifti1Image

import acquire
from helpers import ROOT, SMALL, RunStage, clone_with_outputs, dvc_environment
from page.facts import NOT_MEASURED
from scans.geometry import read_geometry
from scans.nifti import write_nifti
from scans.phantom_layouts import Layout, as_series, places_of, write_phantom_volumes
from scans.tiff import SEQUENCES, read_image, read_mask
from team_page import user_environment

LAYOUTS: tuple[Layout, ...] = ("brats", "bids", "nnunet")
PHYSICAL = ("_mm", "_ml")  # parts of the names of scores that need voxel sizes
LABELS = pd.read_csv(ROOT / "src/page/score_labels.csv", index_col="key")["label"]


def results(folder: Path) -> dict[str, Any]:
    """Return the scores of a run that need no voxel sizes, and the curves of its training."""
    scores = json.loads((folder / "metrics/evaluate.json").read_text())
    in_pixels = {
        split: {
            name: value
            for name, value in values.items()
            if not any(part in name for part in PHYSICAL)
        }
        for split, values in scores.items()
    }
    curves = sorted((folder / "metrics/train/plots/metrics").rglob("*.tsv"))
    return {"scores": in_pixels} | {
        path.name: pd.read_csv(path, sep="\t").drop(columns="timestamp", errors="ignore").to_dict()
        for path in curves
        if "images_per_s" not in path.name
    }


def run_from_page(
    pattern: str, source: Path, folder: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    """Run the command of docs/own-data.md that matches a pattern, with `source` as the data set."""
    page = (ROOT / "docs/own-data.md").read_text()
    [line] = re.findall(f"^{pattern}$", page, re.MULTILINE)
    command = re.sub(r'"/data/[^"]*"', f'"{source}"', line.partition("#")[0])
    environment = dvc_environment() | user_environment(folder.parent)
    done = subprocess.run(
        ["bash", "-c", " ".join([command, *words])],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_other_commands_of_the_page_work(committed_run: Path, tmp_path: Path) -> None:
    """The documented commands write the phantom, then read it with other sequences and labels."""
    folder = clone_with_outputs(committed_run, tmp_path / "clone")
    small = ("--patients", "6", "--image-size", "32")
    line = r"python src/write_phantom\.py phantom-bids bids.*"
    run_from_page(line, tmp_path, folder, *small)
    line = r"dvc exp run .*phantom-bids.* -S train\.epochs=3"
    done = run_from_page(line, tmp_path, folder, "acquire")
    assert re.search(r"\bphantom-bids\b.*\bbids\b.*\b6\b", done.stdout)
    for pattern, sequences in (
        (r"dvc exp run .*acquire\.sequences=\[flair\].*", ["flair"]),
        (r"dvc exp run .*acquire\.sequences=\[t2,.*", ["t2", "flair", "post_contrast"]),
    ):
        run_from_page(pattern, tmp_path, folder, "explore")
        table = pd.read_csv(folder / "metrics/explore/sequences.csv")
        groups = table["group"].str.extract("all: tumor in (.*)")[0].dropna()
        assert groups.tolist() == sequences
    before = (folder / "data/manifest.csv").read_text()
    for mask in (folder / "phantom-bids").rglob("*_mask.nii.gz"):
        image = nibabel.load(mask)
        values = np.asarray(image.dataobj)
        nibabel.save(Nifti1Image(np.choose(values, [0, 1, 4]).astype(np.uint8), image.affine), mask)
    line = r"dvc exp run .*acquire\.labels=.*"
    done = run_from_page(line, tmp_path, folder, "build_manifest")
    assert re.search(r"\b1, 4\b", done.stdout)
    assert (folder / "data/manifest.csv").read_text() == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_phantom_has_the_same_scores_in_each_layout_as_in_tiff_slices(
    committed_run: Path, tmp_path: Path, layout: Layout
) -> None:
    source, folder = tmp_path / "phantom", clone_with_outputs(committed_run, tmp_path / "clone")
    size = {"patients": SMALL["phantom__patients"], "image_size": SMALL["phantom__image_size"]}
    write_phantom_volumes(source, layout=layout, seed=1, **size)
    done = run_from_page(rf"dvc exp run .*acquire\.layout={layout}", source, folder)
    assert re.search(r"data/raw\b.*\b6\b.*data/geometry\.csv\b.*\b6\b", done.stdout)
    assert results(folder) == results(committed_run)
    test = json.loads((folder / "metrics/evaluate.json").read_text())["test"]
    assert test["n_patients_volume_ml"] == test["n_patients"] == 2
    assert test["volume_ml_limit_lower"] <= test["volume_ml_bias"]
    assert LABELS["volume_ml_bias"] in (folder / "report/index.html").read_text()
    assert NOT_MEASURED in (committed_run / "MODEL_CARD.md").read_text()
    assert NOT_MEASURED not in (folder / "MODEL_CARD.md").read_text()
    table = pd.read_csv(folder / "metrics/evaluate/per_patient.csv").set_index("patient_id")
    known = read_geometry(folder / "data/geometry.csv")
    for name, row in table.iterrows():
        voxel = np.prod(known[str(name)].voxel) / 1000
        assert row["reference_ml"] == pytest.approx((row["tp"] + row["fn"]) * voxel, abs=1e-4)


@pytest.mark.skipif(
    not os.environ.get("LGG_ARCHIVE"),
    reason="LGG_ARCHIVE names no copy of the LGG MRI Segmentation data set",
)
@pytest.mark.parametrize("layout", ["brats", "bids"])
def test_real_patients_converted_to_nifti_keep_their_slices(
    run_stage: RunStage, tmp_path: Path, layout: Layout
) -> None:
    """The test takes four patients; one of them has only FLAIR."""
    archive, source = Path(os.environ["LGG_ARCHIVE"]), tmp_path / "source"
    patients = [path for path in sorted(archive.iterdir()) if path.is_dir()][::27][:4]
    expected: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for folder in patients:
        n_slices = len(list(folder.glob("*_mask.tif")))
        files = [folder / f"{folder.name}_{number}" for number in range(1, n_slices + 1)]
        images = [read_image(Path(f"{path}.tif")) for path in files]
        masks = [read_mask(Path(f"{path}_mask.tif")) for path in files]
        places = places_of(layout, folder.name)
        channels = np.moveaxis(np.stack(images), -1, 0)
        volumes = dict(
            zip([places.scans[sequence] for sequence in SEQUENCES], channels, strict=True)
        )
        for place, values in {**volumes, places.mask: np.stack(masks).astype(np.uint8)}.items():
            (source / place).parent.mkdir(parents=True, exist_ok=True)
            series = as_series(values)
            write_nifti(source / place, series.values, series)
        name = Path(places.mask).name.rpartition("_label")[0] if layout == "bids" else folder.name
        expected[name] = list(zip(images, masks, strict=True))
    raw = tmp_path / "data/raw"
    paths = [raw, tmp_path / "data/geometry.csv"]
    outcome = run_stage(acquire.main, paths, acquire__dataset=str(source))
    assert outcome.code == 0, outcome.error
    assert sorted(path.name for path in raw.iterdir() if path.is_dir()) == sorted(expected)
    for name, slices in expected.items():
        for number, (image, mask) in enumerate(slices, start=1):
            path = raw / name / f"{name}_{number}"
            np.testing.assert_array_equal(read_image(Path(f"{path}.tif")), image)
            np.testing.assert_array_equal(read_mask(Path(f"{path}_mask.tif")), mask)
