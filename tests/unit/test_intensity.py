"""Normalization gives all patients the same intensity scale, whatever their scanner."""

from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
import pytest

import measure_tissue
from helpers import Data, section
from pipeline.refusals import Refusal, rebuild_hint
from scans.fitted import Slices, read_batches
from scans.intensity import STATISTICS, Normalize, normalized, tissue_statistics
from scans.manifest import read_manifest
from scans.names import slice_path, sorted_slices
from scans.normalization import NONE, read_normalization
from scans.params import AcquireParams
from scans.tiff import SEQUENCES, read_image

LEVELS = np.arange(256)


def histogram(values: dict[int, int]) -> np.ndarray:
    counts = np.zeros(256, dtype=np.int64)
    for level, n_pixels in values.items():
        counts[level] = n_pixels
    return counts


def test_tissue_is_brighter_than_the_mean_of_the_volume() -> None:
    """Mean of all 100 pixels: (10 * 80 + 30 * 90 + 10 * 130) / 100 = 48."""
    counts = histogram({0: 50, 80: 10, 90: 30, 130: 10})
    found = tissue_statistics(LEVELS, counts)
    std = np.sqrt((10 * 16**2 + 30 * 6**2 + 10 * 34**2) / 50)
    expected = {"tissue_mean": 96, "tissue_std": std, "tissue_median": 90, "tissue_p99": 130}
    assert found == pytest.approx(expected)
    values = np.repeat(np.arange(256), counts)
    tissue = values[values > values.mean()]
    assert found["tissue_mean"] == tissue.mean()
    assert found["tissue_std"] == pytest.approx(tissue.std())
    assert found["tissue_median"] == np.median(tissue)


@pytest.mark.parametrize("level", [0, 7, 255])
def test_a_volume_without_contrast_has_no_tissue_and_is_not_changed(level: int) -> None:
    found = tissue_statistics(LEVELS, histogram({level: 9}))
    assert all(np.isnan(value) for value in found.values())
    for normalize in get_args(Normalize)[1:]:
        assert normalized(LEVELS, found, normalize).tolist() == list(range(256))


def test_percentile_and_median_keep_black_and_z_score_sets_mean_and_deviation() -> None:
    statistics = dict(zip(STATISTICS, (50.0, 20.0, 45.0, 100.0), strict=True))
    percentile = normalized(LEVELS, statistics, "percentile")
    assert percentile[[0, 50, 100, 133, 134, 255]].tolist() == [0, 96, 191, 254, 255, 255]
    median = normalized(LEVELS, statistics, "median")
    assert median[[0, 45, 100, 152, 153, 255]].tolist() == [0, 75, 167, 253, 255, 255]
    z_score = normalized(LEVELS, statistics, "z_score")
    assert z_score[[0, 10, 50, 70, 90, 99, 255]].tolist() == [0, 1, 115, 172, 229, 255, 255]


@pytest.mark.parametrize(
    ("normalize", "contrast"), [("percentile", 50), ("median", 30), ("z_score", 50)]
)
def test_a_volume_twice_as_bright_gives_the_same_levels(
    normalize: Normalize, contrast: int
) -> None:
    rng = np.random.default_rng(0)
    dark = np.concatenate([np.zeros(4000, int), rng.normal(60, 15, 6000).clip(0, 127).astype(int)])
    levels = [
        normalized(volume, tissue_statistics(*np.unique(volume, return_counts=True)), normalize)
        for volume in (dark, 2 * dark)
    ]
    assert np.abs(levels[0].astype(int) - levels[1]).max() <= 2
    assert levels[0].std() > contrast


@pytest.mark.parametrize("normalize", ["percentile", "median", "z_score"])
def test_intensities_of_any_unit_give_the_same_levels(normalize: Normalize) -> None:
    rng = np.random.default_rng(0)
    volume = rng.normal(60, 15, 6000).clip(0).round()
    found = [
        normalized(values, tissue_statistics(*np.unique(values, return_counts=True)), normalize)
        for values in (volume.astype(np.uint8), volume.astype(np.int16) * 32, volume / 1024)
    ]
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_the_table_matches_statistics_of_the_files(data: Data) -> None:
    table = pd.read_csv(data.intensities)
    patients = sorted({name.patient_id for name in sorted_slices(data.images)})
    assert table["patient_id"].tolist() == [each for each in patients for _ in SEQUENCES]
    assert table["sequence"].tolist() == list(SEQUENCES) * len(patients)
    names = [name for name in sorted_slices(data.images) if name.patient_id == patients[3]]
    volume = np.stack([read_image(slice_path(data.images, name.slice_id)) for name in names])
    rows = table[table["patient_id"] == patients[3]].to_dict("records")
    for values, row in zip(np.moveaxis(volume, -1, 0), rows, strict=True):
        tissue = values[values > values.mean()]
        assert row["tissue_mean"] == pytest.approx(tissue.mean(), abs=1e-4)
        assert row["tissue_std"] == pytest.approx(tissue.std(), abs=1e-4)
        assert abs(row["tissue_median"] - np.median(tissue)) <= 0.5
        assert abs(row["tissue_p99"] - np.percentile(tissue, 99)) <= 1


def test_each_slice_is_normalized_with_the_statistics_of_its_patient(data: Data) -> None:
    rows = read_manifest(data.manifest)[::9]
    normalization = read_normalization(data.intensities, rows["patient_id"], "z_score")
    table = pd.read_csv(data.intensities).set_index(["patient_id", "sequence"]).to_dict("index")
    slices = Slices(rows)
    kept, changed = (
        next(read_batches(slices, len(rows), image_size=48, normalization=each)).images
        for each in (NONE, normalization)
    )
    for position, patient_id in enumerate(slices.table["patient_id"]):
        image, result = kept[position, :48, :48], changed[position, :48, :48]
        for channel, sequence in enumerate(SEQUENCES):
            row = table[patient_id, sequence]
            expected = 115 + (image[..., channel] - row["tissue_mean"]) * 57 / row["tissue_std"]
            assert np.abs(result[..., channel] - expected.clip(0, 255)).max() <= 0.51
    assert NONE(image, patient_id) is image


def test_the_same_images_give_the_same_table(data: Data, tmp_path: Path) -> None:
    measure_tissue.main(data.manifest, tmp_path / "again.csv", acquire=section(AcquireParams))
    assert (tmp_path / "again.csv").read_bytes() == data.intensities.read_bytes()


def test_a_manifest_without_slices_leaves_the_table_unchanged(data: Data, tmp_path: Path) -> None:
    read_manifest(data.manifest).head(0).to_csv(tmp_path / "manifest.csv", index=False)
    table = tmp_path / "intensities.csv"
    table.write_text("unchanged")
    with pytest.raises(Refusal, match=r"manifest\.csv: .*build_manifest"):
        measure_tissue.main(tmp_path / "manifest.csv", table, acquire=section(AcquireParams))
    assert table.read_text() == "unchanged"


def test_all_patients_missing_from_the_table_are_listed(data: Data, tmp_path: Path) -> None:
    table = pd.read_csv(data.intensities)
    first = table["patient_id"][0]
    table.drop(index=1).to_csv(tmp_path / "intensities.csv", index=False)
    patient_ids = ["STRANGER", "GUEST", "GUEST", first]
    with pytest.raises(Refusal) as refusal:
        read_normalization(tmp_path / "intensities.csv", patient_ids, "percentile")
    counts = {"GUEST": 0, "STRANGER": 0, first: 2}
    starts = [
        f"{tmp_path / 'intensities.csv'}: {patient} has {n} rows" for patient, n in counts.items()
    ]
    *lines, hint = str(refusal.value).splitlines()
    assert sorted(line.partition(";")[0] for line in lines) == sorted(starts)
    assert hint == rebuild_hint("measure_tissue")
