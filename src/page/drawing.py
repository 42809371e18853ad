"""Slices and masks in the form that a page draws.

Scans become gray WebP images, one per sequence. Overlays become SVG paths in pixels of the slice,
which a browser draws sharply at any size.
"""

import base64
import io
from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np
from contourpy import LineType, contour_generator
from numpy.typing import NDArray
from PIL import Image

QUALITY = 75  # of WebP, 0 to 100


def outline(mask: NDArray[np.bool_]) -> str:
    """Return the border of a mask (H, W) as an SVG path through the midpoints of pixel edges."""
    padded = np.pad(mask, 1).astype(np.float64)
    found = contour_generator(z=padded, line_type=LineType.Separate).lines(0.5)
    lines: list[NDArray[np.float64]] = [np.asarray(line) - 0.5 for line in found]
    return "".join(f"M{line[0, 0]:g} {line[0, 1]:g}{''.join(steps(line))}z" for line in lines)


def steps(line: NDArray[np.float64]) -> Iterator[str]:
    """Yield SVG moves along a line of points (N, 2), x and y; equal moves in a row are merged."""
    moves = np.diff(line, axis=0).tolist()
    for (x, y), same in groupby(moves):
        n = len(list(same))
        yield f"l{n * x:g} {n * y:g}"


def area(mask: NDArray[np.bool_]) -> str:
    """Return exactly the pixels of a mask (H, W) as an SVG path, one rectangle per run in a row."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, begins = np.nonzero(edges == 1)
    lengths = np.nonzero(edges == -1)[1] - begins
    return "".join(f"M{x} {y}h{n}v1h{-n}z" for x, y, n in zip(begins, rows, lengths, strict=True))


def webp(channel: NDArray[np.uint8]) -> str:
    """Return one sequence of a slice (H, W) as a WebP image in base64."""
    buffer = io.BytesIO()
    Image.fromarray(channel).save(buffer, "WEBP", quality=QUALITY)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def bars(areas: Sequence[int], highest: int) -> str:
    """Return areas by slice as an SVG step path from (0, 1) to (n, 1); `highest` reaches y = 0."""
    return "M0 1" + "".join(f"V{1 - area / highest:.3f}h1" for area in areas) + "V1"
