"""The whole graph on the phantom in each layout, and real patients wrapped as NIfTI."""

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
from scans.geometry import read_geometry
from scans.nifti import write_nifti
from scans.phantom_layouts import Layout, as_series, places_of, write_phantom_volumes
from scans.tiff import SEQUENCES, read_image, read_mask
from team_page import person

LAYOUTS: tuple[Layout, ...] = ("brats", "bids", "nnunet")
IN_SPACE = ("_mm", "_ml")  # parts of the names of scores that need voxel sizes


def results(folder: Path) -> dict[str, Any]:
    """Return the scores of a run in pixels, and the curves of its training."""
    scores = json.loads((folder / "metrics/evaluate.json").read_text())
    in_pixels = {
        split: {
            name: value
            for name, value in values.items()
            if not any(part in name for part in IN_SPACE)
        }
        for split, values in scores.items()
    }
    curves = sorted((folder / "metrics/train/plots/metrics").rglob("*.tsv"))
    return {"scores": in_pixels} | {
        path.name: pd.read_csv(path, sep="\t").drop(columns="timestamp", errors="ignore").to_dict()
        for path in curves
        if "images_per_s" not in path.name
    }


def as_the_page_says(
    pattern: str, source: Path, folder: Path, *words: str
) -> subprocess.CompletedProcess[str]:
    """Run the one command of docs/own-data.md that has a pattern, on a data set of a test's own."""
    page = (ROOT / "docs/own-data.md").read_text()
    [line] = re.findall(f"^{pattern}$", page, re.MULTILINE)
    command = re.sub(r'"/data/[^"]*"', f'"{source}"', line.partition("#")[0])
    environment = dvc_environment() | person(folder.parent)
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


def test_the_other_commands_of_the_page_work_as_they_stand(
    committed_run: Path, tmp_path: Path
) -> None:
    """The phantom is written as the page says, then read with other sequences and labels."""
    folder = clone_with_outputs(committed_run, tmp_path / "clone")
    small = ("--patients", "6", "--image-size", "32")
    line = r"python src/write_phantom\.py phantom-bids bids.*"
    as_the_page_says(line, tmp_path, folder, *small)
    line = r"dvc exp run .*phantom-bids.* -S train\.epochs=3"
    done = as_the_page_says(line, tmp_path, folder, "acquire")
    assert "phantom-bids: layout bids, 6 examinations" in done.stdout
    for pattern, sequences in (
        (r"dvc exp run .*acquire\.sequences=\[flair\].*", ["flair"]),
        (r"dvc exp run .*acquire\.sequences=\[t2,.*", ["t2", "flair", "post_contrast"]),
    ):
        as_the_page_says(pattern, tmp_path, folder, "explore")
        table = pd.read_csv(folder / "metrics/explore/sequences.csv")
        groups = table["group"].str.extract("all: tumor in (.*)")[0].dropna()
        assert groups.tolist() == sequences
    before = (folder / "data/manifest.csv").read_text()
    for mask in (folder / "phantom-bids").rglob("*_mask.nii.gz"):
        image = nibabel.load(mask)
        values = np.asarray(image.dataobj)
        nibabel.save(Nifti1Image(np.choose(values, [0, 1, 4]).astype(np.uint8), image.affine), mask)
    line = r"dvc exp run .*acquire\.labels=.*"
    done = as_the_page_says(line, tmp_path, folder, "build_manifest")
    assert "tumor is 1, 4:" in done.stdout
    assert (folder / "data/manifest.csv").read_text() == before


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_experiment_on_the_phantom_gives_the_scores_of_its_slices_in_tiff(
    committed_run: Path, tmp_path: Path, layout: Layout
) -> None:
    source, folder = tmp_path / "phantom", clone_with_outputs(committed_run, tmp_path / "clone")
    size = {"patients": SMALL["phantom__patients"], "image_size": SMALL["phantom__image_size"]}
    write_phantom_volumes(source, layout=layout, seed=1, **size)
    done = as_the_page_says(rf"dvc exp run .*acquire\.layout={layout}", source, folder)
    assert "6 patients in data/raw; voxel sizes of 6 in data/geometry.csv" in done.stdout
    assert results(folder) == results(committed_run)
    test = json.loads((folder / "metrics/evaluate.json").read_text())["test"]
    assert test["n_patients_volume_ml"] == test["n_patients"] == 2
    assert test["volume_ml_limit_lower"] <= test["volume_ml_bias"]
    page = (folder / "report/index.html").read_text()
    assert "Volume, bias, in mL" in page
    assert "no voxel spacing" not in (folder / "MODEL_CARD.md").read_text()
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
def test_real_patients_wrapped_as_nifti_give_their_slices_again(
    run_stage: RunStage, tmp_path: Path, layout: Layout
) -> None:
    """Four patients, one of FLAIR alone."""
    archive, source = Path(os.environ["LGG_ARCHIVE"]), tmp_path / "source"
    patients = [path for path in sorted(archive.iterdir()) if path.is_dir()][::27][:4]
    wanted: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for folder in patients:
        n_slices = len(list(folder.glob("*_mask.tif")))
        files = [folder / f"{folder.name}_{number}" for number in range(1, n_slices + 1)]
        images = [read_image(Path(f"{path}.tif")) for path in files]
        masks = [read_mask(Path(f"{path}_mask.tif")) for path in files]
        places = places_of(layout, folder.name)
        channels = np.moveaxis(np.stack(images), -1, 0)
        volumes = dict(zip([places.scans[each] for each in SEQUENCES], channels, strict=True))
        for place, values in {**volumes, places.mask: np.stack(masks).astype(np.uint8)}.items():
            (source / place).parent.mkdir(parents=True, exist_ok=True)
            series = as_series(values)
            write_nifti(source / place, series.values, series)
        name = Path(places.mask).name.rpartition("_label")[0] if layout == "bids" else folder.name
        wanted[name] = list(zip(images, masks, strict=True))
    raw = tmp_path / "data/raw"
    paths = [raw, tmp_path / "data/geometry.csv"]
    outcome = run_stage(acquire.main, paths, acquire__dataset=str(source))
    assert outcome.code == 0, outcome.error
    assert sorted(path.name for path in raw.iterdir() if path.is_dir()) == sorted(wanted)
    for name, slices in wanted.items():
        for number, (image, mask) in enumerate(slices, start=1):
            path = raw / name / f"{name}_{number}"
            np.testing.assert_array_equal(read_image(Path(f"{path}.tif")), image)
            np.testing.assert_array_equal(read_mask(Path(f"{path}_mask.tif")), mask)
