"""The gallery: which patients a page shows, and their slices with outlines and errors."""

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

EXTREMES = 3  # patients called the best, the median and the worst ones


def overlay(predicted: NDArray[np.bool_], mask: NDArray[np.bool_]) -> dict[str, str]:
    """Return the paths of both borders and of what is right, missed and false, by name."""
    return {
        "reference": outline(mask),
        "prediction": outline(predicted),
        "right": area(predicted & mask),
        "missed": area(mask & ~predicted),
        "false": area(predicted & ~mask),
    }


def views(image: NDArray[np.uint8]) -> list[str]:
    """Return the channels of a scan, (H, W, 3), each as webp does; a copy of the main one is ""."""
    main = image[..., MAIN]
    return [
        "" if at != MAIN and np.array_equal(channel, main) else webp(channel)
        for at, channel in enumerate(np.moveaxis(image, -1, 0))
    ]


def album(
    volume: pd.DataFrame, predictions: Path, *, split: str, threshold: float, share: float
) -> list[dict[str, Any]]:
    """Return what a page needs of a patient's slices in `split`, in order.

    `volume` holds `slice_id`, `slice_number`, `image`, `mask` and `split` of all its slices.
    """
    segmented = segment_volume(volume, predictions, threshold=threshold, share=share)
    shown = []
    for row, each in zip(volume.to_dict("records"), segmented, strict=True):
        if row["split"] == split:
            counts = each.counts()
            shown.append(
                {
                    "number": row["slice_number"],
                    "size": each.mask.shape[::-1],
                    "counts": [counts[name] for name in COUNTS[:3]],
                    "views": views(read_image(Path(row["image"]))),
                    "paths": overlay(each.predicted, each.mask),
                }
            )
    return shown


def ranked(patients: pd.DataFrame) -> pd.DataFrame:
    """Return patients from the best Dice to the worst, then those of none, with `rank`, `place`.

    `place` is best, median or worst for EXTREMES patients each, fewer of a few patients; else "".
    A patient whose Dice is undefined has rank 0 and no place.
    """
    table = patients.sort_values(
        ["dice", "patient_id"], ascending=[False, True], ignore_index=True, na_position="last"
    )
    n_known = int(table["dice"].count())
    each = max(1, min(EXTREMES, n_known // 3))
    middle = (n_known - each) // 2
    table["rank"] = table.index + 1
    table["place"] = ""
    for begin, place in ((middle, "median"), (n_known - each, "worst"), (0, "best")):
        table.loc[max(begin, 0) : begin + each - 1, "place"] = place
    table.loc[n_known:, "rank"] = 0
    table.loc[n_known:, "place"] = ""
    return table


def chosen_for_display(table: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return at most so many of ranked patients: as many best and worst ones, the rest between.

    Those without a rank come last, as far as there is room.
    """
    n_ranked = int((table["rank"] > 0).sum())
    if n_ranked <= most:
        return table.head(most)
    third = most // 3
    middle = most - 2 * third
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
    """Return the album of each of `shown` patients, in their order."""
    volumes = dict(list(manifest.groupby("patient_id")))
    make = partial(album, predictions=predictions, split=split, threshold=threshold, share=share)
    return in_parallel(make, (volumes[name] for name in shown["patient_id"]), "report")


def most_telling(counts: list[int]) -> tuple[int, int]:
    """Return what a patient's first shown slice has most of: wrong pixels, else right ones."""
    tp, fp, fn = counts
    return fp + fn, tp


def area_steps(counts: list[list[int]]) -> dict[str, str]:
    """Return tumor area by slice in reference and prediction, 0 high at the largest of both."""
    areas = {
        "reference": [tp + fn for tp, _, fn in counts],
        "prediction": [tp + fp for tp, fp, _ in counts],
    }
    highest = max(1, *areas["reference"], *areas["prediction"])
    return {name: bars(each, highest) for name, each in areas.items()}


def cards(
    shown: pd.DataFrame,
    cohort: pd.DataFrame,
    slices: list[list[dict[str, Any]]],
    sequences: Sequence[str],
) -> list[dict[str, Any]]:
    """Return what the page shows of each patient, beside its slices: scores and facts.

    `sequences` are those of the three channels.
    """
    facts = cohort.set_index("patient_id")
    found = []
    for row, album_of in zip(shown.to_dict("records"), slices, strict=True):
        counts = [each["counts"] for each in album_of]
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
                "begin": max(range(len(counts)), key=lambda at: most_telling(counts[at])),
                "n_slices": len(album_of),
                "n_slices_all": patient["n_slices"],
            }
        )
    return found
