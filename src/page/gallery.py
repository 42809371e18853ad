"""The gallery: which patients the report shows, and their slices with outlines and errors."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from page.drawing import area, bars, outline, webp
from page.wording import formatted
from pipeline.parallel import in_parallel
from scans.cohort import MISSING, missing_sequence
from scans.sequences import MAIN, other_sequences
from scans.tiff import read_image
from scoring.overlap import COUNTS
from scoring.segmentation import segment_volume

EXTREMES = 3  # patients labeled best, and as many median and worst


def overlay(predicted: NDArray[np.bool_], mask: NDArray[np.bool_]) -> dict[str, str]:
    """Return SVG paths by name: both outlines, and the correct, missed and false pixels."""
    return {
        "reference": outline(mask),
        "prediction": outline(predicted),
        "right": area(predicted & mask),
        "missed": area(mask & ~predicted),
        "false": area(predicted & ~mask),
    }


def views(image: NDArray[np.uint8]) -> list[str]:
    """Return the channels of a scan (H, W, 3) as WebP; "" for a copy of the main channel."""
    main = image[..., MAIN]
    return [
        "" if index != MAIN and np.array_equal(channel, main) else webp(channel)
        for index, channel in enumerate(np.moveaxis(image, -1, 0))
    ]


def album(
    volume: pd.DataFrame, predictions: Path, *, split: str, threshold: float, share: float
) -> list[dict[str, Any]]:
    """Return the images, overlays and counts of a patient's slices in `split`, in order.

    `volume` has the columns `slice_id`, `slice_number`, `image`, `mask` and `split`, for all slices
    of the patient.
    """
    segmented = segment_volume(volume, predictions, threshold=threshold, share=share)
    shown = []
    for row, segmented_slice in zip(volume.to_dict("records"), segmented, strict=True):
        if row["split"] == split:
            counts = segmented_slice.counts()
            shown.append(
                {
                    "number": row["slice_number"],
                    "size": segmented_slice.mask.shape[::-1],
                    "counts": [counts[name] for name in COUNTS[:3]],
                    "views": views(read_image(Path(row["image"]))),
                    "paths": overlay(segmented_slice.predicted, segmented_slice.mask),
                }
            )
    return shown


def ranked(patients: pd.DataFrame) -> pd.DataFrame:
    """Return patients sorted from the best Dice to the worst, with `rank` and `place`.

    `place` is "best", "median" or "worst" for EXTREMES patients each (for fewer, if there are few),
    "" for the rest. Patients whose Dice is undefined come last, with rank 0 and no place.
    """
    table = patients.sort_values(
        ["dice", "patient_id"], ascending=[False, True], ignore_index=True, na_position="last"
    )
    n_known = int(table["dice"].count())
    size = max(1, min(EXTREMES, n_known // 3))
    middle = (n_known - size) // 2
    table["rank"] = table.index + 1
    table["place"] = ""
    for begin, place in ((middle, "median"), (n_known - size, "worst"), (0, "best")):
        table.loc[max(begin, 0) : begin + size - 1, "place"] = place
    table.loc[n_known:, "rank"] = 0
    table.loc[n_known:, "place"] = ""
    return table


def chosen_for_display(table: pd.DataFrame, max_patients: int) -> pd.DataFrame:
    """Return at most `max_patients` ranked patients.

    A third of them are the best, a third the worst, and the rest are in the middle. Patients
    without a rank come last, if there is room.
    """
    n_ranked = int((table["rank"] > 0).sum())
    if n_ranked <= max_patients:
        return table.head(max_patients)
    third = max_patients // 3
    middle = max_patients - 2 * third
    begin = (n_ranked - middle) // 2
    rows = [*range(third), *range(begin, begin + middle), *range(n_ranked - third, n_ranked)]
    return table.iloc[rows]


def albums(
    shown: pd.DataFrame,
    manifest: pd.DataFrame,
    predictions: Path,
    *,
    split: str,
    threshold: float,
    share: float,
) -> list[list[dict[str, Any]]]:
    """Return the album of each patient in `shown`, in the same order."""
    volumes = dict(list(manifest.groupby("patient_id")))
    make = partial(album, predictions=predictions, split=split, threshold=threshold, share=share)
    return in_parallel(make, (volumes[name] for name in shown["patient_id"]), "report")


def error_then_overlap(counts: list[int]) -> tuple[int, int]:
    """Return the wrong and correct pixels of a slice; a card opens at the highest such pair."""
    tp, fp, fn = counts
    return fp + fn, tp


def area_steps(counts: list[list[int]]) -> dict[str, str]:
    """Return step paths of the tumor area by slice, in reference and prediction, on one scale."""
    areas = {
        "reference": [tp + fn for tp, _, fn in counts],
        "prediction": [tp + fp for tp, fp, _ in counts],
    }
    highest = max(1, *areas["reference"], *areas["prediction"])
    return {name: bars(by_slice, highest) for name, by_slice in areas.items()}


def cards(
    shown: pd.DataFrame,
    cohort: pd.DataFrame,
    slices: list[list[dict[str, Any]]],
    sequences: Sequence[str],
) -> list[dict[str, Any]]:
    """Return the scores and facts on the card of each patient.

    `sequences` are those of the three channels.
    """
    facts = cohort.set_index("patient_id")
    found = []
    for row, album_slices in zip(shown.to_dict("records"), slices, strict=True):
        counts = [shown_slice["counts"] for shown_slice in album_slices]
        patient = facts.loc[row["patient_id"]]
        found.append(
            {
                "patient_id": row["patient_id"],
                "missing": missing_sequence(patient),
                "missing_channels": [
                    sequences.index(name)
                    for name in other_sequences(sequences)
                    if patient[f"{MISSING}{name}"]
                ],
                "rank": row["rank"],
                "place": row["place"],
                "sort": "" if pd.isna(row["dice"]) else row["dice"],
                "dice": formatted(row["dice"]),
                "iou": formatted(row["iou"]),
                "tumor": row["tp"] + row["fn"],
                "steps": area_steps(counts),
                "begin": max(
                    range(len(counts)), key=lambda index: error_then_overlap(counts[index])
                ),
                "n_slices": len(album_slices),
                "n_slices_all": patient["n_slices"],
            }
        )
    return found
