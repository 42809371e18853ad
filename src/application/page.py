"""Write the page of a segmented scan: one file with the same viewer as the report."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from application.segmentation import Segmentation
from page.drawing import area, bars, outline, webp
from page.rendering import script_json, template_environment
from page.wording import shown_sequences

LONGEST = 320  # most pixels along a slice's longer side in the page


def shown_size(segmentation: Segmentation) -> tuple[int, int]:
    """Return the width and height of a slice in the page, in square pixels."""
    _, pixel_height, pixel_width = segmentation.voxel_size
    height, width = (
        segmentation.mask.shape[1] * pixel_height,
        segmentation.mask.shape[2] * pixel_width,
    )
    finest = min(pixel_height, pixel_width)
    scale = min(1 / finest, LONGEST / max(height, width))
    return max(1, round(width * scale)), max(1, round(height * scale))


def shown_slice(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_],
    size: tuple[int, int],
    copies: list[int],
) -> dict[str, Any]:
    """Return the viewer's data of a slice, (H, W, 3), except its number and its text."""
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    tumor = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    return {
        "size": size,
        "views": [
            "" if channel in copies else webp(np.ascontiguousarray(resized[..., channel]))
            for channel in range(resized.shape[-1])
        ],
        "paths": {"prediction": outline(tumor), "right": area(tumor)},
    }


def area_in_words(n_pixels: int, square_millimeters: float | None) -> str:
    """Return the tumor area of a slice as text."""
    if not n_pixels:
        return "No tumor"
    if square_millimeters is None:
        return f"Tumor area: {n_pixels:,} px"
    return f"Tumor area: {n_pixels * square_millimeters / 100:.1f} cm²"


def write_page(path: Path, segmentation: Segmentation, summary: dict[str, Any]) -> None:
    """Write the page of a patient; `summary` is the content of result.json."""
    size, areas = shown_size(segmentation), segmentation.mask.sum(axis=(1, 2)).tolist()
    _, pixel_height, pixel_width = segmentation.voxel_size
    pixel = None if summary["volume_ml"] is None else pixel_height * pixel_width
    slices = [
        {"words": area_in_words(n_pixels, pixel)}
        | shown_slice(image, mask, size, segmentation.copies)
        for image, mask, n_pixels in zip(segmentation.images, segmentation.mask, areas, strict=True)
    ]
    text = (
        template_environment()
        .get_template("result.html")
        .render(
            summary=summary,
            **shown_sequences(segmentation.sequences),
            n_slices=len(slices),
            begin=int(np.argmax(areas)) if any(areas) else len(areas) // 2,
            steps=bars(areas, max(1, *areas)),
            missing_channels=segmentation.copies,
            slices=script_json([slices]),
        )
    )
    path.write_text(text, encoding="utf-8")
