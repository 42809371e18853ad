"""The gallery: a patient's slices as a page shows them, with outlines and errors to lay over them.

Scans become gray WebP images, a sequence each; what lies over them becomes paths of SVG, in pixels
of the slice, so that a browser draws them sharply at any size.
"""

import base64
import io
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from contourpy import LineType, contour_generator
from numpy.typing import NDArray
from PIL import Image

from overlap import COUNTS, count_pixels
from probability import read_pair, segment
from slices import SEQUENCES, read_image, slice_path
from stage import Refusal

QUALITY = 75  # of WebP, 0 to 100


def outline(mask: NDArray[np.bool_]) -> str:
    """Return the border of a mask, (H, W), as a path through the middle of its pixels' edges."""
    padded = np.pad(mask, 1).astype(np.float64)
    found = contour_generator(z=padded, line_type=LineType.Separate).lines(0.5)
    lines: list[NDArray[np.float64]] = [np.asarray(line) - 0.5 for line in found]
    return "".join(f"M{line[0, 0]:g} {line[0, 1]:g}{''.join(steps(line))}z" for line in lines)


def steps(line: NDArray[np.float64]) -> Iterator[str]:
    """Yield the moves along a line of points, (N, 2) x and y; equal ones in a row as one."""
    moves = np.diff(line, axis=0).tolist()
    for (x, y), same in groupby(moves):
        n = len(list(same))
        yield f"l{n * x:g} {n * y:g}"


def area(mask: NDArray[np.bool_]) -> str:
    """Return all pixels of a mask, (H, W), exactly, as a path with a rectangle for each run."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, begins = np.nonzero(edges == 1)
    lengths = np.nonzero(edges == -1)[1] - begins
    return "".join(f"M{x} {y}h{n}v1h{-n}z" for x, y, n in zip(begins, rows, lengths, strict=True))


def overlay(predicted: NDArray[np.bool_], mask: NDArray[np.bool_]) -> dict[str, str]:
    """Return the paths of both borders and of what is right, missed and false, by name."""
    return {
        "reference": outline(mask),
        "prediction": outline(predicted),
        "right": area(predicted & mask),
        "missed": area(mask & ~predicted),
        "false": area(predicted & ~mask),
    }


def webp(channel: NDArray[np.uint8]) -> str:
    """Return one sequence of a slice, (H, W), as a WebP image in base64."""
    buffer = io.BytesIO()
    Image.fromarray(channel).save(buffer, "WEBP", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def views(image: NDArray[np.uint8]) -> list[str]:
    """Return the sequences of a scan, (H, W, 3), each as webp does; a copy of FLAIR is ""."""
    flair = image[..., SEQUENCES.index("flair")]
    return [
        "" if name != "flair" and np.array_equal(channel, flair) else webp(channel)
        for name, channel in zip(SEQUENCES, np.moveaxis(image, -1, 0), strict=True)
    ]


def album(
    volume: pd.DataFrame,
    images: Path,
    masks: Path,
    predictions: Path,
    *,
    split: str,
    threshold: float,
    largest: bool,
) -> list[dict[str, Any]]:
    """Return what a page needs of a patient's slices in `split`, in order.

    `volume` holds `slice_id`, `slice_number`, `split` and, from evaluate's table, COUNTS of all
    slices of the patient. Refuses predictions that are others than those that were scored.
    """
    pairs = [read_pair(slice_id, masks, predictions) for slice_id in volume["slice_id"]]
    answers = segment([levels for levels, _ in pairs], threshold=threshold, largest=largest)
    shown = []
    for row, (_, mask), predicted in zip(volume.to_dict("records"), pairs, answers, strict=True):
        counts = count_pixels(predicted, mask)
        if any(counts[name] != row[name] for name in COUNTS):
            raise Refusal(
                f"slice {row['slice_id']}: the predictions are not those that were scored; "
                "`dvc repro evaluate`"
            )
        if row["split"] == split:
            shown.append(
                {
                    "number": row["slice_number"],
                    "size": mask.shape[::-1],
                    "counts": [counts[name] for name in COUNTS[:3]],
                    "views": views(read_image(slice_path(images, row["slice_id"]))),
                    "paths": overlay(predicted, mask),
                }
            )
    return shown
