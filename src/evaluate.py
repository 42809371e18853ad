"""Score the predictions on train, val (if there is one) and test, by every common definition.

    python src/evaluate.py data/geometry.csv data/splits.csv data/patients.csv data/predictions \
        metrics/evaluate.json metrics/evaluate

Every slice is scored at its own size. Nothing here looks at the network: another predictor's
probability maps in the place of data/predictions are scored alike.
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

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

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
from scoring.physical import in_one_piece, joined, physical_scores, summarize_physical
from scoring.scores import per_patient, subgroups, summarize
from scoring.segmentation import read_pair, segment_volume
from scoring.surface import surface_scores

THRESHOLDS = np.arange(1, 20) / 20  # among which `threshold: val` chooses
CODES = ("grade", "gender")  # columns of data.csv that patients are grouped by


class Assessed(NamedTuple):
    """What is kept once predictions are compared with the reference, for D slices."""

    slices: pd.DataFrame  # one row a slice
    pixels: NDArray[np.int64]  # (D, 2, LEVELS) healthy and tumor pixels of each level
    trivial: list[dict[str, dict[str, int]]]  # COUNTS of each slice by predictor
    physical: dict[str, dict[str, float]]  # scores in mm and mL by patient, where sizes are known


def pixel_counts(levels: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many healthy and how many tumor pixels have which level, (2, LEVELS)."""
    codes = levels.astype(np.int64) + LEVELS * mask
    return np.bincount(codes.ravel(), minlength=2 * LEVELS).reshape(2, LEVELS)


def best_threshold(counts: NDArray[np.int64]) -> float:
    """Return the one of THRESHOLDS with the highest micro IoU, the one nearest to 0.5 of equals.

    `counts`, (2, LEVELS), are the pixels of the slices to choose on.
    """
    above = THRESHOLDS[:, None] < PROBABILITIES  # (THRESHOLDS, LEVELS)
    fp, tp = (above * counts[:, None]).sum(axis=2)
    scores = np.nan_to_num(iou(tp, fp, counts[1].sum() - tp))
    best = THRESHOLDS[scores == scores.max()]
    return float(best[np.abs(best - 0.5).argmin()])


def choose_threshold(slices: pd.DataFrame, predictions: Path) -> float:
    """Return the best threshold on slices, given by `slice_id` and `mask`."""
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
) -> Assessed:
    """Compare a patient's predictions with the reference.

    `volume` holds `patient_id`, `slice_id`, `slice_number`, `mask` and `split` of all its slices,
    in order; `voxels` has the known sizes of patients' voxels, in mm.
    """
    segmented = segment_volume(volume, predictions, threshold=threshold, share=share)
    rows = []
    for each in segmented:
        probability = PROBABILITIES[each.levels]
        rows.append(
            {
                **each.counts(),
                "max_probability": probability.max(),
                "probability_sum": probability.sum(),
                "probability_inside": probability[each.predicted].sum(),
                **surface_scores(each.predicted, each.mask),
            }
        )
    slices = pd.DataFrame(rows, index=volume.index)
    numbers, splits = volume["slice_number"].tolist(), volume["split"].tolist()
    pixels = np.stack([pixel_counts(each.levels, each.mask) for each in segmented])
    trivial = trivial_counts([each.mask for each in segmented], numbers, splits)
    patient_id, physical = volume["patient_id"].iloc[0], {}
    if patient_id in voxels and in_one_piece(numbers, splits):
        masks = (stack([each.predicted for each in segmented]), stack([m.mask for m in segmented]))
        physical = {patient_id: physical_scores(*masks, voxels[patient_id])}
    return Assessed(slices, pixels, trivial, physical)


def definition_table(
    slices: pd.DataFrame, trivial: list[dict[str, dict[str, int]]], *, seed: int
) -> pd.DataFrame:
    """Return every definition of each predictor's score on each split, and on all slices."""
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
                continue  # it would mix the slices that it was trained on with the others
            chosen = table if split == "all" else table[table["split"] == split]
            answered = chosen.dropna(subset=list(COUNTS))
            if len(answered):
                scores = definitions(answered, seed=seed)
                label = {"name": f"{name} ({split})", "split": split, "predictor": name}
                rows.append({**label, **scores})
    return pd.DataFrame(rows)


def slice_table(slices: pd.DataFrame) -> pd.DataFrame:
    """Return what per_slice.csv holds; areas are in pixels of the slice's own size."""
    table = slices[["split", "slice_id", "patient_id", "abnormal", *COUNTS]].assign(
        detected=(slices["tp"] + slices["fp"] > 0).astype(int),
        reference_area=slices["tp"] + slices["fn"],
        predicted_area=slices["tp"] + slices["fp"],
    )
    return table.join(slices[["max_probability", "hd95", "surface_dice"]])


def side_by_side(tables: dict[str, pd.DataFrame], key: str, value: str) -> pd.DataFrame:
    """Return the splits' tables as one with a row for each `key`, the same in all of them.

    A split's `value` is in the column of its name, the rest in columns that begin with it.
    """
    renamed = []
    for split, table in tables.items():
        named = table.set_index(key).add_prefix(f"{split}_")
        renamed.append(named.rename(columns={f"{split}_{value}": split}))
    return pd.concat(renamed, axis="columns").reset_index()


def assess_all(
    manifest: pd.DataFrame,
    predictions: Path,
    voxels: Mapping[str, Sequence[float]],
    *,
    threshold: float,
    share: float,
) -> Assessed:
    """Compare the predictions of all patients with the reference, several at once."""
    volumes = [rows for _, rows in manifest.groupby("patient_id")]
    compare = partial(
        assess, predictions=predictions, voxels=voxels, threshold=threshold, share=share
    )
    assessed = in_parallel(compare, volumes, "evaluate")
    joined = [rows.join(each.slices) for rows, each in zip(volumes, assessed, strict=True)]
    return Assessed(
        pd.concat(joined),
        np.concatenate([each.pixels for each in assessed]),
        [counts for each in assessed for counts in each.trivial],
        {name: scores for each in assessed for name, scores in each.physical.items()},
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
    """Print of how many patients there are no scores in mm and mL, and why."""
    if n_patients:
        print(
            f"{n_patients} patients have no scores in mm and mL: {geometry} has no voxel sizes for "
            "them, or their slices are on several sides of the split, or some are missing"
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
                f"evaluate.threshold is val, and {splits} has no slices of val; set it to a "
                "number, or split.val_fraction above 0"
            )
        threshold = choose_threshold(manifest[manifest["split"] == "val"], predictions)
    voxels = {name: known.voxel for name, known in read_geometry(geometry).items()}
    slices, pixels, trivial, physical = assess_all(
        manifest, predictions, voxels, threshold=threshold, share=evaluate.component_share
    )
    check_levels(pixels.sum(axis=(0, 1)), predictions)
    table = joined(per_patient(slices), physical)

    scores, bins, curves = {}, {}, {}
    for split in splits_of(slices):
        of_slices, of_patients = (each[each["split"] == split] for each in (slices, table))
        bins[split] = reliability(PROBABILITIES, pixels[slices["split"] == split].sum(axis=0))
        doubt = of_patients["dice"], of_patients["confidence"]
        curves[split] = risk_coverage(*doubt)
        scores[split] = {
            **summarize(of_slices, of_patients, bootstrap),
            **detection(of_slices, bootstrap),
            **summarize_physical(of_patients, bootstrap),
            "ece": expected_calibration_error(bins[split]),
            "ece_above_first_bin": expected_calibration_error(bins[split][1:]),
            "aurc": area_under_risk_coverage(*doubt),
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
