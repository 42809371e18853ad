"""The outputs of explore against values computed directly from the phantom."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage

import build_manifest
import explore
from exploration.figures import area_figure, hue_figure, location_figure, shares
from exploration.findings import KINDS, bone_share, outlier_findings
from exploration.measurements import GRID, HUE_BINS, POSITIONS, Measurements, Volume
from helpers import SIZE, Data, RunStage, section
from scans.manifest import read_manifest
from scans.names import slice_path
from scans.params import AcquireParams
from scans.tiff import LEVELS, SEQUENCES, read_image, read_mask

TABLES = ["cohort", "findings", "hue", "per_patient", "position", "sequences"]
FIGURES = ["hue", "intensity", "location", "position", "tumor_area"]


def test_metrics_and_tables_equal_direct_counts(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    metrics, explored = tmp_path / "explore.json", tmp_path / "explore"
    paths = [data.geometry, data.manifest, data.patients, metrics, explored]
    assert run_stage(explore.main, paths).code == 0
    found = json.loads(metrics.read_text())
    slices = read_manifest(data.manifest)
    masks = np.stack([read_mask(slice_path(data.masks, name)) for name in slices["slice_id"]])
    images = np.stack([read_image(slice_path(data.images, name)) for name in slices["slice_id"]])
    area = masks.mean(axis=(1, 2))
    assert found["n_patients"] == 10
    assert found["n_slices"] == len(masks)
    assert found["n_slices_abnormal"] == (area > 0).sum()
    assert found["abnormal_fraction"] == pytest.approx((area > 0).mean(), abs=1e-5)
    assert found["tumor_pixel_fraction"] == pytest.approx(masks.mean(), abs=1e-5)
    assert found["tumor_area"]["median"] == pytest.approx(np.median(area[area > 0]), abs=1e-5)
    assert found["tumor_area"]["max"] == pytest.approx(area.max(), abs=1e-5)
    assert found["tumor_area"]["n"] == (area > 0).sum()
    per_patient = pd.Series(area).groupby(slices["patient_id"]).mean()
    assert found["tumor_share_of_patient"]["q75"] == pytest.approx(
        per_patient.quantile(0.75), abs=1e-5
    )
    assert found["slices_of_patient"]["max"] == slices["patient_id"].value_counts().max()
    left = masks[:, :, : SIZE // 2].sum() / masks.sum()
    assert found["tumor_share_image_left"] == pytest.approx(left, abs=1e-5)
    assert 90 < found["hue"]["tumor_peak"] < 190  # bright in FLAIR, the green channel
    assert (found["n_missing_pre_contrast"], found["n_missing_post_contrast"]) == (1, 2)
    assert found["n_complete"] == 8
    flair = images[..., 1]
    assert found["intensity"]["flair"]["tumor_mean"] == pytest.approx(flair[masks].mean(), abs=1e-4)
    tissue = ~masks & (flair > 20)
    assert found["intensity"]["flair"]["healthy_mean"] == pytest.approx(
        flair[tissue].mean(), abs=1e-4
    )
    complete = ~slices["patient_id"].str.contains("_0001_|_0002_").to_numpy()
    post = images[complete, ..., 2][masks[complete]]
    assert found["intensity"]["post_contrast"]["tumor_mean"] == pytest.approx(post.mean(), abs=1e-4)

    tables = {path.stem: pd.read_csv(path) for path in explored.glob("*.csv")}
    assert sorted(tables) == TABLES
    position = tables["position"]
    assert position["n_slices"].sum() == len(masks)
    assert position["n_abnormal"].sum() == (area > 0).sum()
    assert position["tumor_share"].sum() == pytest.approx(1, abs=1e-4)
    assert tables["hue"][["tumor", "healthy"]].sum().tolist() == pytest.approx([1, 1], abs=2e-3)
    cohort = tables["cohort"].set_index("group")
    assert cohort.loc["institution: P1", "n_patients"] == 3
    assert cohort.loc["missing sequence: pre and post-contrast", "n_patients"] == 1
    assert cohort.loc["institution: P1", "n_patients_hue"] == 2
    second = slices["institution"] == "P2"
    by_patient = slices[second].groupby("patient_id")
    for name, value in {
        "n_slices": second.sum(),
        "n_abnormal": slices.loc[second, "abnormal"].sum(),
        "slices_median": by_patient.size().median(),
        "abnormal_fraction": slices.loc[second, "abnormal"].mean(),
        "tumor_fraction": masks[second].mean(),
        "image_left_share": masks[second][:, :, : SIZE // 2].sum() / masks[second].sum(),
    }.items():
        assert cohort.loc["institution: P2", name] == pytest.approx(value, abs=1e-5), name
    for attribute in ("age", "gender", "grade", "institution", "laterality", "missing sequence"):
        rows = cohort[cohort.index.str.startswith(f"{attribute}: ")]
        assert rows["n_patients"].sum() == 10
        assert rows["n_slices"].sum() == len(masks)
    patients: Any = tables["per_patient"].set_index("patient_id")
    assert len(patients) == 10
    np.testing.assert_allclose(patients["tumor_fraction"], per_patient, atol=1e-5)
    for patient_id, rows in slices.groupby("patient_id"):
        n_components = ndimage.label(masks[rows.index])[1]
        assert patients.loc[patient_id, "n_components"] == n_components
        assert patients.loc[patient_id, "abnormal_fraction"] == pytest.approx(
            rows["abnormal"].mean(), abs=1e-5
        )
    abnormal = slices.groupby("patient_id")["abnormal"].sum()
    assert found["abnormal_of_patient"]["q25"] == abnormal.quantile(0.25)
    assert found["n_several_components"] == (patients["n_components"] > 1).sum()
    sequences = tables["sequences"].set_index("group")
    assert sequences.loc["all: tumor in flair", "n_patients"] == 10
    assert sequences.loc["all: healthy in pre_contrast", "n_patients"] == 9
    assert sequences.loc["all: tumor in post_contrast", "n_pixels"] == masks[complete].sum()
    tumor = flair[second][masks[second]]
    assert sequences.loc["P2: tumor in flair", "n_pixels"] == tumor.size
    assert sequences.loc["P2: tumor in flair", "mean"] == pytest.approx(tumor.mean(), abs=1e-5)
    assert sequences.loc["P2: tumor in flair", "q95"] == np.quantile(
        tumor, 0.95, method="inverted_cdf"
    )
    assert (
        [found["hue"]["n_patients"]] == [found["intensity"]["post_contrast"]["n_patients"]] == [8]
    )
    assert len(tables["findings"]) == sum(found["findings"].values())


def test_figures_are_drawn_and_all_outputs_are_reproducible(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    metrics, explored = tmp_path / "explore.json", tmp_path / "explore"
    paths = [data.geometry, data.manifest, data.patients, metrics, explored]
    contents = []
    for _ in range(2):
        assert run_stage(explore.main, paths).code == 0
        files = sorted(path for path in explored.rglob("*") if path.is_file())
        contents.append({path.name: path.read_bytes() for path in [metrics, *files]})
    assert contents[0] == contents[1]
    assert sorted(path.stem for path in (explored / "figures").iterdir()) == FIGURES
    for path in (explored / "figures").iterdir():
        with Image.open(path) as image:
            assert "Software" not in image.info
            assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_tables_of_different_patients_are_an_error(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    pd.read_csv(data.patients, dtype=str).iloc[1:].to_csv(tmp_path / "patients.csv", index=False)
    paths = [
        data.geometry,
        data.manifest,
        tmp_path / "patients.csv",
        tmp_path / "a.json",
        tmp_path / "a",
    ]
    outcome = run_stage(explore.main, paths)
    assert outcome.code == 1
    for path in (data.manifest, tmp_path / "patients.csv"):
        assert str(path) in outcome.error
    assert "`dvc repro build_manifest`" in outcome.error
    assert not (tmp_path / "a").exists()


def test_planted_oddities_are_reported_with_their_files(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    images, masks = (
        Path(shutil.copytree(folder, tmp_path / folder.name))
        for folder in (data.images, data.masks)
    )
    ids = read_manifest(data.manifest).groupby("patient_id")["slice_id"].agg(list)
    cleared, bordered, copied, twin = ids.iloc[2], ids.iloc[3], ids.iloc[4], ids.iloc[5]
    for slice_id in cleared:
        Image.fromarray(np.zeros((SIZE, SIZE), np.uint8)).save(slice_path(masks, slice_id))
    mask = read_mask(slice_path(masks, bordered[8])).astype(np.uint8) * 255
    mask[:5, 3] = 255
    mask[40, 46] = 255
    Image.fromarray(mask).save(slice_path(masks, bordered[8]))
    scan = read_image(slice_path(images, copied[10])).astype(np.float64)
    Image.fromarray((0.8 * scan).astype(np.uint8)).save(slice_path(images, twin[3]))
    manifest, patients = tmp_path / "manifest.csv", tmp_path / "patients.csv"
    build_manifest.main(
        *(images, masks, data.raw / "data.csv", manifest, patients), acquire=section(AcquireParams)
    )

    metrics, explored = tmp_path / "explore.json", tmp_path / "explore"
    paths = [data.geometry, manifest, patients, metrics, explored]
    assert run_stage(explore.main, paths).code == 0
    findings = pd.read_csv(explored / "findings.csv", keep_default_na=False)
    planted = {
        ("no_tumor", slice_path(masks, cleared[0]).as_posix(), len(cleared), ""),
        ("mask_touches_border", slice_path(masks, bordered[8]).as_posix(), 1, ""),
        ("speck", slice_path(masks, bordered[8]).as_posix(), 1, ""),
        ("speck", slice_path(masks, bordered[8]).as_posix(), 5, ""),
    }
    rows = {(row.kind, row.file, row.value, row.other) for row in findings.itertuples()}
    assert planted <= rows
    twins = findings[findings["kind"] == "near_duplicate"].set_index(["file", "other"])["value"]
    pair = tuple(slice_path(images, name).as_posix() for name in (copied[10], twin[3]))
    assert twins[pair] > 0.999
    found = json.loads(metrics.read_text())
    assert found["findings"]["no_tumor"] == 1
    assert found["findings"] == {kind: int((findings["kind"] == kind).sum()) for kind in KINDS}


def measured() -> Measurements:
    location = np.zeros((GRID, GRID), np.int64)
    location[-1, 0] = 30  # bottom left
    location[0, -1] = 10
    hue = np.zeros((2, HUE_BINS), np.int64)
    hue[:, 60] = 2000, 500
    levels = np.zeros((3, 2, LEVELS), np.int64)
    return Measurements(location, np.zeros((POSITIONS, 3), np.int64), hue, levels, 4000)


def test_the_heat_map_gives_the_share_of_each_side() -> None:
    [axes, _] = location_figure(measured()).axes
    left, right = (text.get_text() for text in axes.texts)
    assert "left" in left
    assert "75 %" in left
    assert "right" in right
    assert "25 %" in right
    assert "n = 40" in axes.get_title()
    drawn = np.asarray(axes.images[0].get_array())
    assert drawn[-1, 0] == 750  # per mille; the first row is at the top
    assert drawn.sum() == pytest.approx(1000)


def test_the_area_histograms_mark_the_median() -> None:
    figure = area_figure(np.array([0.01, 0.02, 0.12]), np.array([0.005, 0.01]))
    labels = [axes.get_legend().get_texts()[0].get_text() for axes in figure.axes]  # type: ignore[union-attr]
    assert labels == ["median 2.0 %", "median 0.8 %"]
    slices, patients = (axes.get_title() for axes in figure.axes)
    assert "3 abnormal slices" in slices
    assert "2 patients" in patients


def test_a_histogram_of_few_pixels_is_not_drawn() -> None:
    figure = hue_figure(measured(), {"A": measured(), "B": measured()}, SEQUENCES)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [
        "all institutions, n = 2,000 tumor pixels",
        "A, n = 2,000 tumor pixels",
        "B, n = 2,000 tumor pixels",
    ]
    assert [line.get_label() for line in shown[0].lines] == ["tumor"]
    np.testing.assert_array_equal(shares(np.zeros(4, np.int64)), np.zeros(4))


def volumes_of(names: list[str]) -> list[pd.DataFrame]:
    return [pd.DataFrame({"image": [f"{name}_1.tif"], "patient_id": [name]}) for name in names]


def kinds(bone: list[float], spacings: list[float] | None = None) -> list[tuple[str, str, float]]:
    """Return kind, patient and value of the findings in patients A, B and so on."""
    names = [chr(ord("A") + n) for n in range(len(bone))]
    sizes = [(each, 0.9, 0.9) for each in spacings or []]
    found = outlier_findings(volumes_of(names), bone, dict(zip(names, sizes, strict=False)))
    return [(each.kind, each.patient_id, each.value) for each in found]


def test_only_a_mix_of_whole_heads_and_skull_stripped_brains_is_a_finding() -> None:
    assert kinds([0.3, 0.01, 0.4]) == [("skull_stripped", "B", 0.01)]
    assert kinds([0.3, 0.2, 0.4]) == kinds([0.01, 0.02, 0.0]) == []
    assert kinds([0.01, *[0.3] * 39]) == []  # few enough to be false alarms


def test_a_mix_of_voxel_sizes_is_a_finding() -> None:
    assert kinds([0.3] * 4, [5, 5, 5.2, 1]) == [("voxel_size", "D", 1)]
    assert kinds([0.3] * 4, [5, 5, 5.2]) == []


def test_a_head_has_bone_and_a_skull_stripped_brain_has_none() -> None:
    """A head of 160 mm with scalp, dark skull and brain, and the same brain without them."""
    y, x = np.mgrid[:200, :200] - 100
    radius = np.hypot(y, x)
    head = 120 * (radius < 68) + 200 * ((radius > 75) & (radius < 80))
    for pixels, least, most in ((head, 0.3, 1.0), (120 * (radius < 68), 0.0, 0.02)):
        image = np.repeat(pixels[..., None].astype(np.uint8), 3, axis=-1)
        volume = Volume(pd.DataFrame(), [image] * 6, [])
        assert least <= bone_share(volume, 1.0) <= most
