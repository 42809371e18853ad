"""The values and phrases of the report and the model card, from the results of the stages."""

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
from pipeline.refusals import Refusal, rebuild_hint
from scans.cohort import MISSING
from scans.manifest import count_near_duplicates, splits_of
from scans.sequences import other_sequences, short_name

OWN_DATA_PARAMS = ("acquire.layout", "acquire.labels", "acquire.sequences")
NOT_MEASURED = (
    "The files have no voxel spacing, so distances are in pixels and in 2-D, and volumes are pixel "
    "counts."
)
SHOWN = "test"  # the split whose patients and charts are shown
TABULATED = ("test", "val", "train")  # the order of a table's columns
COUNTED = ("slices", "patients", "batches")
# The figures of explore, in order: caption and alt text.
FIGURES = {
    "location": (
        "Tumor location in the slice plane: share of all tumor pixels in each cell",
        "Heat map; {tumor_share_image_left:.0%} of the tumor pixels are in the left half of the "
        "image",
    ),
    "position": (
        "Tumor location along the volume: share of abnormal slices and share of all tumor pixels "
        "at each position",
        "Bar chart with a line, from the first slice to the last; {abnormal_fraction:.1%} of all "
        "slices are abnormal",
    ),
    "tumor_area": (
        "Tumor size per abnormal slice and per patient",
        "Two histograms; the median tumor covers {tumor_area[median]:.1%} of an abnormal slice and "
        "{tumor_share_of_patient[median]:.1%} of a patient's pixels",
    ),
    "intensity": (
        "Intensity of tumor and healthy tissue in each sequence",
        "A histogram per sequence; the mean intensity in {main} is "
        "{main_intensity[tumor_mean]:.0f} in tumor and {main_intensity[healthy_mean]:.0f} in "
        "healthy tissue, on a scale of 0 to 255",
    ),
    "hue": (
        "Hue of tumor and healthy tissue, with the sequences shown as red, green and blue; for all "
        "patients and by institution",
        "Histograms over the {hue[n_patients]} patients who have all sequences",
    ),
}
FINDINGS = {
    "no_tumor": "patients without tumor",
    "mask_touches_border": "masks that touch the border of the slice",
    "speck": "tiny tumor components next to a larger one",
    "near_duplicate": "pairs of near-duplicate slices from two patients",
    "slice_gap": "gaps in the slice numbers",
    "mask_shifted": "patients whose masks seem to be shifted by one or more slices",
}
OUTLIER_FINDINGS = {  # listed only if there are any
    "skull_stripped": "skull-stripped patients in a data set that also has whole heads",
    "voxel_size": "patients with an unusual voxel size",
}


def read_table(path: Path, hint: str, separator: str = ",") -> pd.DataFrame:
    """Return a table from metrics/; names stay text, empty fields are NaN."""
    text = dict.fromkeys(("patient_id", "institution", "attribute", "group"), str)
    try:
        return pd.read_csv(path, sep=separator, dtype=text, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise Refusal(f"{path}: cannot be read ({error}). {hint}") from None


def data_name(dataset: str) -> str:
    """Return the display name of `acquire.dataset`."""
    names = {
        "lgg": "LGG MRI Segmentation (Buda et al., 2019)",
        "phantom": "a synthetic phantom, not real patients",
    }
    return names.get(dataset, "the user's own data set")


def data_license(dataset: str) -> str:
    """Return the SPDX license of a model trained on a data set; "" if unknown."""
    return {"lgg": "CC-BY-NC-SA-4.0", "phantom": "MIT"}.get(dataset, "")


def limits(
    dataset: str,
    *,
    n_institutions: int,
    context: int,
    calibration: float | None,
    measured: bool,
) -> list[str]:
    """Return the limitations of the model and its scores, one sentence or two each.

    `calibration` is the test split's `ece_above_first_bin`, None if undefined; `measured` says
    whether all voxel sizes are known.
    """
    by_dataset = {
        "lgg": [
            "Every patient in the data set was known to have a tumor. False alarms were measured "
            "only on the healthy slices of these patients, never on people without a tumor.",
            "Each slice has only one reference mask. Experts disagree about the exact border, so "
            "not every deviation from the reference is an error.",
            f"All patients come from {n_institutions} institutions in one archive. Other scanners, "
            "protocols and preprocessing were not tested.",
        ],
        "phantom": ["The model has learned to find ellipses in noise, and nothing else."],
    }
    unknown = "How well the model works for patients unlike those in the data set is unknown."
    seen = "a slice and its two neighbors" if context else "one slice without its neighbors"
    return [
        *by_dataset.get(dataset, [unknown]),
        *([] if measured else [NOT_MEASURED]),
        f"The network sees {seen}, not the whole volume.",
        f"The expected calibration error is {formatted(calibration)} over the pixels with a "
        "probability of at least 5 %.",
        "The scores of small patient groups are uncertain. Grade, gender and similar attributes "
        "are codes from `data.csv`, which has no codebook.",
    ]


def exploration_facts(explored: dict[str, Any], sequences: Sequence[str]) -> dict[str, Any]:
    """Return the facts about the images and about the sequences in their channels."""
    return {
        "explored": explored,
        **shown_sequences(sequences),
        "network_input": channels_in_words(sequences),
        "missing_counts": [
            (short_name(name), explored[f"n_{MISSING}{name}"])
            for name in other_sequences(sequences)
        ],
    }


def file_facts(path: Path) -> dict[str, Any]:
    """Return a file's path, size in MB and SHA-256."""
    return {
        "path": path.as_posix(),
        "megabytes": f"{path.stat().st_size / 1e6:.1f}",
        "sha256": file_sha256(path),
    }


def encoder_facts(path: Path, fetched: dict[str, Any]) -> dict[str, Any]:
    """Return the facts about the encoder's file; raise an error if it is not the fetched one.

    `fetched` is what `fetch_encoder` recorded.
    """
    found = file_facts(path)
    if found["sha256"] != fetched.get("sha256"):
        raise Refusal(f"{path}: not the file that was fetched; {rebuild_hint('fetch_encoder')}")
    return fetched | found


def param_facts(params: Mapping[str, Section | int]) -> dict[str, Any]:
    """Return the params, and a row for each with its dotted name and its value as in YAML.

    OWN_DATA_PARAMS have rows only if the data set is the user's own.
    """
    values = {
        name: value.model_dump() if isinstance(value, Section) else value
        for name, value in params.items()
    }
    shown = dict(leaves(values))
    if shown["acquire.dataset"] in ("lgg", "phantom"):
        shown = {name: value for name, value in shown.items() if name not in OWN_DATA_PARAMS}
    rows = [
        (name, str(value).lower() if isinstance(value, bool) else value)
        for name, value in shown.items()
    ]
    return {"params": params, "param_rows": rows}


def cohort_facts(manifest: pd.DataFrame, cohort: pd.DataFrame, explored: Path) -> dict[str, Any]:
    """Return the numbers of patients and institutions, and the size of each split.

    `explored` is the folder with explore's tables.
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
    """Return the predictors and a row of formatted scores for each definition, then rows of n."""
    rows = [
        (label, [formatted(value) for value in definitions[name]])
        for name, label in DEFINITIONS.items()
    ]
    rows += [(f"n, {unit}", [f"{n:,}" for n in definitions[f"n_{unit}"]]) for unit in COUNTED]
    return {"predictors": definitions["predictor"].tolist(), "rows": rows}


def subgroup_rows(subgroups: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the groups of patients with their formatted scores."""
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
    """Return the facts about the scores; `tables` have only the rows of SHOWN."""
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
