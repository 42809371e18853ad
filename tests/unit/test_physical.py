"""Distances in mm and volumes in mL, compared with values by hand and with MONAI."""

import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy import ndimage

import evaluate
from helpers import Data, RunStage
from scans.geometry import Geometry, write_geometry
from scans.manifest import read_manifest
from scans.probability_maps import write_levels
from scoring.bootstrap import Bootstrap
from scoring.physical import is_complete_volume, physical_scores, summarize_physical

VOXEL = (5.0, 0.9, 0.8)  # mm


def box(first: int, *, size: tuple[int, int, int] = (3, 6, 8)) -> np.ndarray:
    mask = np.zeros((9, 30, 30), np.bool_)
    mask[first : first + size[0], 5 : 5 + size[1], 5 : 5 + size[2]] = True
    return mask


def test_a_box_moved_by_a_slice_is_5_mm_away() -> None:
    """Most of the border is shared, but one face of the moved box is one slice from the other."""
    scores = physical_scores(box(3), box(2), VOXEL)
    assert scores["hd95_mm"] == pytest.approx(5.0)
    volume = 3 * 6 * 8 * 5.0 * 0.9 * 0.8 / 1000
    assert scores["reference_ml"] == scores["predicted_ml"] == pytest.approx(volume)
    assert physical_scores(box(2), box(2), VOXEL)["surface_distance_mm"] == 0


def test_an_empty_mask_has_a_volume_but_no_distances() -> None:
    scores = physical_scores(np.zeros_like(box(2)), box(2), VOXEL)
    assert np.isnan([scores["hd95_mm"], scores["surface_distance_mm"]]).all()
    assert scores["predicted_ml"] == 0 < scores["reference_ml"]


@pytest.mark.parametrize("seed", range(6))
def test_distances_equal_monais(seed: int) -> None:
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.normal(size=(2, 12, 40, 36)), (0, 1, 3, 3))
    predicted, mask = fields > np.quantile(fields, rng.uniform(0.7, 0.98))
    pair = [torch.from_numpy(volume[None, None]) for volume in (predicted, mask)]
    settings = {"include_background": True, "spacing": VOXEL}
    with warnings.catch_warnings(action="ignore"):
        hausdorff = compute_hausdorff_distance(*pair, percentile=95, **settings)
        average = compute_average_surface_distance(*pair, symmetric=True, **settings)
    scores = physical_scores(predicted, mask, VOXEL)
    assert scores["hd95_mm"] == pytest.approx(hausdorff.item(), rel=1e-5)
    assert scores["surface_distance_mm"] == pytest.approx(average.item(), rel=1e-5)


def test_bias_and_limits_of_agreement_equal_values_computed_by_hand() -> None:
    table = pd.DataFrame(
        {
            "hd95_mm": [2.0, 4.0, np.nan],
            "surface_distance_mm": [1.0, 2.0, np.nan],
            "reference_ml": [10.0, 20.0, 30.0],
            "predicted_ml": [11.0, 19.0, 33.0],
        }
    )
    scores = summarize_physical(table, Bootstrap(100, 1))
    assert scores["hd95_mm_mean"] == 3
    assert scores["n_patients_hd95_mm"] == 2
    differences = np.array([1.0, -1.0, 3.0])
    assert scores["volume_ml_bias"] == pytest.approx(1.0)
    spread = 1.96 * differences.std(ddof=1)
    assert scores["volume_ml_limit_lower"] == pytest.approx(1 - spread)
    assert scores["volume_ml_limit_upper"] == pytest.approx(1 + spread)
    assert scores["n_patients_volume_ml"] == 3
    assert summarize_physical(table[[]], Bootstrap(100, 1)) == {}


def test_a_volume_with_gaps_or_in_several_splits_is_incomplete() -> None:
    assert is_complete_volume([1, 2, 3], ["test"] * 3)
    assert not is_complete_volume([1, 2, 4], ["test"] * 3)
    assert not is_complete_volume([1, 2, 3], ["test", "train", "test"])


def test_only_patients_with_known_voxel_spacing_have_scores_in_mm_and_ml(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], tmp_path: Path
) -> None:
    maps, slices = tmp_path / "maps", read_manifest(data.splits)
    maps.mkdir()
    for slice_id, mask in masks.items():
        write_levels(mask.astype(np.uint8) * 255, maps, slice_id)
    measured = sorted(set(slices.loc[slices["split"] == "test", "patient_id"]))[:1]
    rows = [Geometry(name, *VOXEL, None, (0, 0, 0), np.eye(4)) for name in measured]
    write_geometry(tmp_path / "geometry.csv", rows)
    out = tmp_path / "evaluate"
    paths = [tmp_path / "geometry.csv", data.splits, data.patients, maps, tmp_path / "e.json", out]
    assert run_stage(evaluate.main, paths, evaluate__resamples=100).code == 0
    table = pd.read_csv(out / "per_patient.csv").set_index("patient_id")
    assert table.index[table["reference_ml"].notna()].tolist() == measured
    row = table.loc[measured[0]]
    assert row["hd95_mm"] == row["surface_distance_mm"] == 0
    assert row["reference_ml"] == pytest.approx((row["tp"] + row["fn"]) * np.prod(VOXEL) / 1000)
