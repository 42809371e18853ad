"""What page and model card say, in rows and words, from the results of the stages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from page.wording import (
    DEFINITIONS,
    HEADLINE,
    SCORES,
    channels_in_words,
    format_score,
    formatted,
    shown_sequences,
)
from pipeline.outputs import file_sha256
from pipeline.params import Section, leaves
from pipeline.refusals import Refusal, remake
from scans.cohort import MISSING
from scans.manifest import count_near_duplicates, splits_of
from scans.sequences import other_sequences, short_name

OF_OWN_DATA = ("acquire.layout", "acquire.labels", "acquire.sequences")
NOT_MEASURED = (
    "The files have no voxel spacing: distances are in pixels and in 2-D, volumes are counts of "
    "pixels."
)
SHOWN = "test"  # the split whose patients and charts are shown
TABULATED = ("test", "val", "train")  # in the order of a table's columns
COUNTED = ("slices", "patients", "batches")
# The figures of explore, in order: a caption and an alt text.
FIGURES = {
    "location": (
        "Where tumors lie in the slice plane: share of all tumor pixels in each cell",
        "Heat map; {tumor_share_image_left:.0%} of tumor pixels lie in the left half of the image",
    ),
    "position": (
        "Where tumors lie along the volume: share of slices that are abnormal, and of all tumor "
        "pixels, at each position",
        "Bars and a line, from the first slice to the last; {abnormal_fraction:.1%} of all slices "
        "are abnormal",
    ),
    "tumor_area": (
        "How large tumors are, by abnormal slice and by patient",
        "Two histograms; the median is {tumor_area[median]:.1%} of an abnormal slice, and "
        "{tumor_share_of_patient[median]:.1%} of a patient's pixels",
    ),
    "intensity": (
        "How bright tumor and healthy tissue are in each sequence",
        "Three histograms; in {main} the mean is {main_intensity[tumor_mean]:.0f} in tumor and "
        "{main_intensity[healthy_mean]:.0f} in healthy tissue, of 255",
    ),
    "hue": (
        "Hue of tumor and healthy tissue, of all patients and by institution",
        "Histograms, of {hue[n_patients]} patients with all sequences",
    ),
}
FINDINGS = {
    "no_tumor": "patients without tumor",
    "mask_touches_border": "masks that touch the border of the slice",
    "speck": "specks beside a larger component",
    "near_duplicate": "near-duplicate slices of two patients",
    "slice_gap": "gaps in the numbers of slices",
    "mask_shifted": "patients whose masks fit the slice before or after better",
}
MIXED = {  # named only where there are some
    "skull_stripped": "patients whose skull was removed, among whole heads",
    "voxel_size": "patients whose voxels differ in size from those of most",
}


def read_table(path: Path, hint: str, separator: str = ",") -> pd.DataFrame:
    """Return a table of metrics; names stay text, empty fields are NaN."""
    text = dict.fromkeys(("patient_id", "institution", "attribute", "group"), str)
    try:
        return pd.read_csv(path, sep=separator, dtype=text, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise Refusal(f"{path}: cannot be read ({error}). {hint}") from None


def data_name(dataset: str) -> str:
    """Return what the data set of `acquire.dataset` is called."""
    names = {
        "lgg": "LGG MRI Segmentation (Buda et al., 2019)",
        "phantom": "a synthetic phantom, which says nothing about patients",
    }
    return names.get(dataset, "a data set of the user's own")


def data_license(dataset: str) -> str:
    """Return the SPDX name of the license of what was trained on a data set; "" if unknown."""
    return {"lgg": "CC-BY-NC-SA-4.0", "phantom": "MIT"}.get(dataset, "")


def limits(
    dataset: str,
    *,
    n_institutions: int,
    context: int,
    calibration: float | None,
    measured: bool,
) -> list[str]:
    """Return what a model's scores leave open.

    `calibration` is its error from 5 % on test; `measured` says whether voxel sizes are known.
    """
    of_data = {
        "lgg": [
            "Every patient of the data has a tumor, found before the scan was chosen: how often it "
            "finds one in somebody who has none is unknown beyond the healthy slices of these "
            "patients.",
            "One reference for each slice: what is missed at a border may be a matter of opinion.",
            f"Patients of {n_institutions} institutions of one archive. Other scanners, protocols "
            "and preprocessing are not tested.",
        ],
        "phantom": ["Ellipses in noise: what it learned there holds nowhere else."],
    }
    seen = "a slice and the two beside it, not the whole volume"
    return [
        *of_data.get(dataset, ["What the scores hold for beyond patients like these is unknown."]),
        *([] if measured else [NOT_MEASURED]),
        f"The network sees {seen if context else 'one slice at a time, not those beside it'}.",
        f"Probabilities are off by {formatted(calibration)} on average among pixels of 5 % and "
        "more.",
        "Groups that have few patients say little about such patients. Grade, gender and the like "
        "are the codes of `data.csv`, which comes without a code book.",
    ]


def exploration_facts(explored: dict[str, Any], sequences: Sequence[str]) -> dict[str, Any]:
    """Return what page and card say about the images and the sequences of their channels."""
    return {
        "explored": explored,
        **shown_sequences(sequences),
        "takes": channels_in_words(sequences),
        "missing_counts": [
            (short_name(name), explored[f"n_{MISSING}{name}"])
            for name in other_sequences(sequences)
        ],
    }


def file_facts(path: Path) -> dict[str, Any]:
    """Return a file's place, size in MB and SHA-256."""
    return {
        "path": path.as_posix(),
        "megabytes": f"{path.stat().st_size / 1e6:.1f}",
        "sha256": file_sha256(path),
    }


def encoder_facts(path: Path, fetched: dict[str, Any]) -> dict[str, Any]:
    """Return what page and card say about the encoder's file; refuse one that was not fetched."""
    found = file_facts(path)
    if found["sha256"] != fetched.get("sha256"):
        raise Refusal(f"{path}: not the file that was fetched; {remake('fetch_encoder')}")
    return fetched | found


def param_facts(params: Mapping[str, Section | int]) -> dict[str, Any]:
    """Return the params, and rows of the dotted name and the value of each, as YAML writes it.

    What is read for a data set of the user's own alone has rows only there.
    """
    values = {
        name: value.model_dump() if isinstance(value, Section) else value
        for name, value in params.items()
    }
    shown = dict(leaves(values))
    if shown["acquire.dataset"] in ("lgg", "phantom"):
        shown = {name: value for name, value in shown.items() if name not in OF_OWN_DATA}
    rows = [
        (name, str(value).lower() if isinstance(value, bool) else value)
        for name, value in shown.items()
    ]
    return {"params": params, "param_rows": rows}


def cohort_facts(manifest: pd.DataFrame, cohort: pd.DataFrame, explored: Path) -> dict[str, Any]:
    """Return how many patients there are, of how many institutions, and how they are split.

    `explored` is the folder of explore's tables.
    """
    splits = manifest.groupby("split").agg(
        n_patients=("patient_id", "nunique"),
        n_slices=("slice_id", "size"),
        n_abnormal=("abnormal", "sum"),
    )
    return {
        "n_patients": len(cohort),
        "n_alike": count_near_duplicates(manifest, explored / "findings.csv"),
        "institutions": cohort["institution"].nunique(),
        "splits": splits.loc[splits_of(manifest)]
        .rename_axis("name")
        .reset_index()
        .to_dict("records"),
    }


def definition_rows(definitions: pd.DataFrame) -> dict[str, Any]:
    """Return the predictors and, for each definition, what they score, as printed; then their n."""
    rows = [
        (label, [formatted(value) for value in definitions[name]])
        for name, label in DEFINITIONS.items()
    ]
    rows += [(f"n, {each}", [f"{n:,}" for n in definitions[f"n_{each}"]]) for each in COUNTED]
    return {"predictors": definitions["predictor"].tolist(), "rows": rows}


def subgroup_rows(subgroups: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the groups of patients with their scores, as printed."""
    rows = []
    for row in subgroups.to_dict("records"):
        low, high = (row[f"dice_patient_mean_{end}"] for end in ("low", "high"))
        rows.append(
            {
                "attribute": row["attribute"],
                "value": row["value"],
                "n": row["n_patients_dice"],
                "mean": formatted(row["dice_patient_mean"]),
                "interval": "" if pd.isna(low) else f"{formatted(low)} to {formatted(high)}",
                "median": formatted(row["dice_patient_median"]),
                "iou": formatted(row["iou"]),
            }
        )
    return rows


def is_measured(scores: dict[str, Any]) -> bool:
    """Return whether all patients of a split have scores in mm and mL."""
    return bool(scores.get("n_patients_volume_ml") == scores["n_patients"])


def score_facts(
    scores: dict[str, dict[str, Any]], tables: dict[str, pd.DataFrame]
) -> dict[str, Any]:
    """Return what page and card say about the scores; rows of `tables` are of SHOWN alone."""
    tabulated = [split for split in TABULATED if split in scores]
    rows = [
        (score, [format_score(score, scores[split]) for split in tabulated])
        for score in SCORES
        if any(score.key in scores[split] for split in tabulated)
    ]
    first = {score.key: (score, values[tabulated.index(SHOWN)]) for score, values in rows}
    return {
        "measured": is_measured(scores[SHOWN]),
        "tabulated": tabulated,
        "score_rows": rows,
        "headline": [first[key] for key in HEADLINE],
        "calibration": first["ece_above_first_bin"][1],
        "threshold": scores[SHOWN]["threshold"],
        "subgroups": subgroup_rows(tables["subgroups"]),
        "definitions": definition_rows(tables["definitions"]),
    }
