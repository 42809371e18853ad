"""Score the predictions on train, val (if there is one) and test, by all common definitions.

    python src/evaluate.py data/geometry.csv data/splits.csv data/patients.csv data/predictions \
        metrics/evaluate.json metrics/evaluate

Every slice is scored at its original size. The stage does not use the network: it scores the
probability maps of any predictor in data/predictions.
"""

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from pipeline.command import run
from pipeline.outputs import replacing, write_metrics, write_tables
from pipeline.parallel import in_parallel
from pipeline.params import Seed
from pipeline.refusals import Refusal
from scans.cohort import groups, read_patients
from scans.geometry import read_geometry
from scans.manifest import read_manifest, splits_of
from scans.probability_maps import PROBABILITIES, check_levels
from scans.tiff import LEVELS
from scans.volume import stack
from scoring.bootstrap import Bootstrap
from scoring.calibration import (
    area_under_risk_coverage,
    expected_calibration_error,
    reliability,
    risk_coverage,
)
from scoring.definitions import NETWORK, definitions, trivial_counts
from scoring.detection import detection
from scoring.overlap import COUNTS, iou
from scoring.params import EvaluateParams
from scoring.physical import (
    is_complete_volume,
    physical_scores,
    summarize_physical,
    with_physical_scores,
)
from scoring.scores import per_patient, subgroups, summarize
from scoring.segmentation import read_pair, segment_volume
from scoring.surface import surface_scores

THRESHOLDS = np.arange(1, 20) / 20  # the choices for `threshold: val`
CODES = ("grade", "gender")  # columns of data.csv that define subgroups


class Assessment(NamedTuple):
    """The comparison of predictions with the reference, for D slices."""

    slices: pd.DataFrame  # one row per slice
    pixels: NDArray[np.int64]  # (D, 2, LEVELS): numbers of healthy and tumor pixels at each level
    trivial: list[dict[str, dict[str, int]]]  # each slice's COUNTS by trivial predictor
    physical: dict[str, dict[str, float]]  # scores in mm and mL by patient with known voxel spacing


def pixel_counts(levels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the numbers of healthy and of tumor pixels at each level, (2, LEVELS)."""
    codes = levels.astype(np.int64) + LEVELS * mask
    return np.bincount(codes.ravel(), minlength=2 * LEVELS).reshape(2, LEVELS)


def best_threshold(counts: NDArray[np.int64]) -> float:
    """Return the value in THRESHOLDS with the highest micro IoU; on a tie, the one nearest to 0.5.

    `counts` (2, LEVELS) are the `pixel_counts` of all slices to choose on.
    """
    above = THRESHOLDS[:, None] < PROBABILITIES  # (THRESHOLDS, LEVELS)
    fp, tp = (above * counts[:, None]).sum(axis=2)
    scores = np.nan_to_num(iou(tp, fp, counts[1].sum() - tp))
    best = THRESHOLDS[scores == scores.max()]
    return float(best[np.abs(best - 0.5).argmin()])


def choose_threshold(slices: pd.DataFrame, predictions: Path) -> float:
    """Return the best threshold on these slices; the table has `slice_id` and `mask`."""
    pixels = np.zeros((2, LEVELS), dtype=np.int64)
    rows = zip(slices["slice_id"], slices["mask"], strict=True)
    for slice_id, mask_file in tqdm(
        rows, desc="threshold", unit="slice", total=len(slices), leave=False, disable=None
    ):
        pixels += pixel_counts(*read_pair(slice_id, mask_file, predictions))
    return best_threshold(pixels)


def assess(
    volume: pd.DataFrame,
    predictions: Path,
    voxels: Mapping[str, Sequence[float]],
    *,
    threshold: float,
    share: float,
) -> Assessment:
    """Return the comparison of a patient's predictions with the reference.

    `volume` holds `patient_id`, `slice_id`, `slice_number`, `mask` and `split` of all its slices,
    in order. `voxels` has the voxel spacing in mm, by patient, where it is known.
    """
    segmented_slices = segment_volume(volume, predictions, threshold=threshold, share=share)
    rows = []
    for segmented in segmented_slices:
        probability = PROBABILITIES[segmented.levels]
        rows.append(
            {
                **segmented.counts(),
                "max_probability": probability.max(),
                "probability_sum": probability.sum(),
                "probability_inside": probability[segmented.predicted].sum(),
                **surface_scores(segmented.predicted, segmented.mask),
            }
        )
    slices = pd.DataFrame(rows, index=volume.index)
    numbers, splits = volume["slice_number"].tolist(), volume["split"].tolist()
    pixels = np.stack(
        [pixel_counts(segmented.levels, segmented.mask) for segmented in segmented_slices]
    )
    masks = [segmented.mask for segmented in segmented_slices]
    trivial = trivial_counts(masks, numbers, splits)
    patient_id, physical = volume["patient_id"].iloc[0], {}
    if patient_id in voxels and is_complete_volume(numbers, splits):
        predicted = stack([segmented.predicted for segmented in segmented_slices])
        physical = {patient_id: physical_scores(predicted, stack(masks), voxels[patient_id])}
    return Assessment(slices, pixels, trivial, physical)


def definition_table(
    slices: pd.DataFrame, trivial: list[dict[str, dict[str, int]]], *, seed: int
) -> pd.DataFrame:
    """Return each predictor's scores by every definition, on each split and on all slices."""
    names = dict.fromkeys(name for counts in trivial for name in counts)
    predictors = {NETWORK: slices} | {
        name: slices.drop(columns=list(COUNTS)).join(
            pd.DataFrame([counts.get(name, {}) for counts in trivial], index=slices.index)
        )
        for name in names
    }
    rows = []
    for split in (*splits_of(slices), "all"):
        for name, table in predictors.items():
            if (split, name) == ("all", NETWORK):
                continue  # the score would mix training slices with unseen ones
            chosen = table if split == "all" else table[table["split"] == split]
            predicted = chosen.dropna(subset=list(COUNTS))
            if len(predicted):
                scores = definitions(predicted, seed=seed)
                label = {"name": f"{name} ({split})", "split": split, "predictor": name}
                rows.append({**label, **scores})
    return pd.DataFrame(rows)


def slice_table(slices: pd.DataFrame) -> pd.DataFrame:
    """Return the table per_slice.csv; areas are in pixels at the slice's original size."""
    table = slices[["split", "slice_id", "patient_id", "abnormal", *COUNTS]].assign(
        detected=(slices["tp"] + slices["fp"] > 0).astype(int),
        reference_area=slices["tp"] + slices["fn"],
        predicted_area=slices["tp"] + slices["fp"],
    )
    return table.join(slices[["max_probability", "hd95", "surface_dice"]])


def side_by_side(tables: dict[str, pd.DataFrame], key: str, value: str) -> pd.DataFrame:
    """Return the splits' tables joined on `key`, whose values are the same in all of them.

    The column `value` of a split is renamed to the split's name; its other columns get that name as
    a prefix.
    """
    renamed = []
    for split, table in tables.items():
        prefixed = table.set_index(key).add_prefix(f"{split}_")
        renamed.append(prefixed.rename(columns={f"{split}_{value}": split}))
    return pd.concat(renamed, axis="columns").reset_index()


def assess_all(
    manifest: pd.DataFrame,
    predictions: Path,
    voxels: Mapping[str, Sequence[float]],
    *,
    threshold: float,
    share: float,
) -> Assessment:
    """Return the comparison of all patients' predictions with the reference, made in parallel."""
    volumes = [rows for _, rows in manifest.groupby("patient_id")]
    compare = partial(
        assess, predictions=predictions, voxels=voxels, threshold=threshold, share=share
    )
    patients = in_parallel(compare, volumes, "evaluate")
    slices = [rows.join(patient.slices) for rows, patient in zip(volumes, patients, strict=True)]
    return Assessment(
        pd.concat(slices),
        np.concatenate([patient.pixels for patient in patients]),
        [counts for patient in patients for counts in patient.trivial],
        {name: scores for patient in patients for name, scores in patient.physical.items()},
    )


def print_scores(scores: dict[str, dict[str, Any]]) -> None:
    """Print the main scores of each split."""
    for split, values in scores.items():
        print(
            f"{split}: IoU {values['iou']:.4f}, Dice by patient "
            f"{values['dice_patient_mean']:.4f} mean ({values['dice_patient_mean_low']:.4f} to "
            f"{values['dice_patient_mean_high']:.4f}), {values['dice_patient_median']:.4f} median, "
            f"n = {values['n_patients']}"
        )


def print_unmeasured(n_patients: int, geometry: Path) -> None:
    """Print how many patients have no scores in mm and mL, and the possible reasons."""
    if n_patients:
        print(
            f"patients without scores in mm and mL: {n_patients}. Either {geometry} has no voxel "
            "spacing for them, or slices are missing, or their slices are in different splits."
        )


def main(
    geometry: Path,
    splits: Path,
    patients: Path,
    predictions: Path,
    metrics: Path,
    evaluated: Path,
    *,
    seed: Seed,
    evaluate: EvaluateParams,
) -> None:
    manifest = read_manifest(splits, "split", "slice_number", "mask")
    bootstrap, threshold = Bootstrap(evaluate.resamples, seed), evaluate.threshold
    if threshold == "val":
        if "val" not in splits_of(manifest):
            raise Refusal(
                f"evaluate.threshold is val, but {splits} has no slices in val; set "
                "evaluate.threshold to a number, or split.val_fraction to more than 0"
            )
        threshold = choose_threshold(manifest[manifest["split"] == "val"], predictions)
    voxels = {name: row.voxel for name, row in read_geometry(geometry).items()}
    slices, pixels, trivial, physical = assess_all(
        manifest, predictions, voxels, threshold=threshold, share=evaluate.component_share
    )
    check_levels(pixels.sum(axis=(0, 1)), predictions)
    table = with_physical_scores(per_patient(slices), physical)

    scores, bins, curves = {}, {}, {}
    for split in splits_of(slices):
        split_slices = slices[slices["split"] == split]
        split_patients = table[table["split"] == split]
        bins[split] = reliability(PROBABILITIES, pixels[slices["split"] == split].sum(axis=0))
        dice_and_confidence = split_patients["dice"], split_patients["confidence"]
        curves[split] = risk_coverage(*dice_and_confidence)
        scores[split] = {
            **summarize(split_slices, split_patients, bootstrap),
            **detection(split_slices, bootstrap),
            **summarize_physical(split_patients, bootstrap),
            "ece": expected_calibration_error(bins[split]),
            "ece_above_first_bin": expected_calibration_error(bins[split][1:]),
            "aurc": area_under_risk_coverage(*dice_and_confidence),
            "threshold": threshold,
        }
    tables = {
        "definitions": definition_table(slices, trivial, seed=seed),
        "per_patient": table,
        "per_slice": slice_table(slices),
        "reliability": side_by_side(bins, "bin", "observed"),
        "risk_coverage": side_by_side(curves, "coverage", "risk"),
        "subgroups": subgroups(table, groups(read_patients(patients), *CODES), bootstrap),
    }
    with replacing(evaluated) as [folder]:
        folder.mkdir()
        write_tables(folder, tables)
    write_metrics(metrics, scores)
    print_scores(scores)
    print_unmeasured(manifest["patient_id"].nunique() - len(physical), geometry)


if __name__ == "__main__":
    run(main)
