"""Look at the images: what share is abnormal, how large and where tumors are, and of what hue.

    python src/explore.py data/slices/images data/slices/masks data/manifest.csv \
        metrics/explore.json metrics/explore

Hue is that of the three sequences read as red, green and blue; a pixel whose channels are all
equal has none and does not count. A leaf of the graph: nothing depends on it.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm.contrib.concurrent import process_map

from manifest import read_manifest
from outputs import replacing, write_metrics
from slices import read_image, read_mask, slice_path
from stage import run

Counts = NDArray[np.int64]

GRID = 64  # cells of the heat map along each side of a slice
HUE_BINS = 180  # bin k is around 2 k degrees, as OpenCV rounds hue in 8 bits
TISSUE_LEVEL = 20  # of 255 in FLAIR; what is darker, air mostly, is left out of the healthy tissue
QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


@dataclass(frozen=True)
class Looks:
    """What was counted in some slices; looks of several patients add up."""

    location: Counts  # (GRID, GRID) tumor pixels by place in the slice plane, rows from anterior
    tumor_hue: Counts  # (HUE_BINS,) tumor pixels
    healthy_hue: Counts  # (HUE_BINS,) pixels of tissue outside the mask
    area: tuple[float, ...]  # tumor area of each slice, as a fraction of it
    n_pixels: int

    def __add__(self, other: "Looks") -> "Looks":
        return Looks(
            self.location + other.location,
            self.tumor_hue + other.tumor_hue,
            self.healthy_hue + other.healthy_hue,
            self.area + other.area,
            self.n_pixels + other.n_pixels,
        )


def hue_counts(image: NDArray[np.uint8], where: NDArray[np.bool_]) -> Counts:
    """Return how many of the pixels `where`, (H, W), have which hue; gray ones have none."""
    pixels = image[where][None]
    if pixels.size == 0:
        return np.zeros(HUE_BINS, dtype=np.int64)
    hue, saturation, _ = cv2.split(cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV))
    return np.bincount(hue[saturation > 0], minlength=HUE_BINS)


def location_counts(mask: NDArray[np.bool_]) -> Counts:
    """Return the tumor pixels in each cell of a grid over the slice, (GRID, GRID)."""
    rows, columns = np.nonzero(mask)
    height, width = mask.shape
    cells = (rows * GRID // height) * GRID + columns * GRID // width
    return np.bincount(cells, minlength=GRID * GRID).reshape(GRID, GRID)


def look(slice_ids: list[str], images: Path, masks: Path) -> Looks:
    """Return what is counted in the given slices together."""
    zeros = np.zeros(HUE_BINS, dtype=np.int64)
    total = Looks(np.zeros((GRID, GRID), dtype=np.int64), zeros, zeros, (), 0)
    for slice_id in slice_ids:
        image = read_image(slice_path(images, slice_id))
        mask = read_mask(slice_path(masks, slice_id))
        tissue = (image[..., 1] > TISSUE_LEVEL) & ~mask
        total += Looks(
            location_counts(mask),
            hue_counts(image, mask),
            hue_counts(image, tissue),
            (float(mask.mean()),),
            mask.size,
        )
    return total


def circular_mean(counts: Counts) -> float:
    """Return the mean direction of a hue histogram in degrees, [0, 360); NaN when it is empty."""
    angles = np.deg2rad(np.arange(len(counts)) * 360 / len(counts))
    mean = (counts * np.exp(1j * angles)).sum()
    return float(np.rad2deg(np.angle(mean)) % 360) if counts.any() else float("nan")


def peak(counts: Counts) -> float:
    """Return the most frequent hue of a histogram in degrees; NaN when it is empty."""
    fullest = int(counts.argmax()) * 360 / len(counts)
    return fullest if counts.any() else float("nan")


def abnormal_area(looks: Looks) -> NDArray[np.float64]:
    """Return the tumor area of each abnormal slice as a fraction of the slice."""
    area = np.array(looks.area)
    return area[area > 0]


def quantile(values: NDArray[np.float64], q: float) -> float:
    """Return a quantile; NaN of no values."""
    return float(np.quantile(values, q)) if len(values) else float("nan")


def summary(manifest: pd.DataFrame, looks: Looks) -> dict[str, object]:
    """Return the figures of explore.json; areas are fractions of a slice, hues in degrees."""
    area = abnormal_area(looks)
    left = looks.location[:, : GRID // 2].sum() / max(1, looks.location.sum())
    return {
        "n_patients": int(manifest["patient_id"].nunique()),
        "n_slices": len(manifest),
        "n_slices_abnormal": len(area),
        "abnormal_fraction": len(area) / len(manifest),
        "tumor_pixel_fraction": int(looks.location.sum()) / looks.n_pixels,
        "tumor_area": {name: quantile(area, q) for name, q in QUANTILES.items()},
        "tumor_share_image_left": float(left),
        "hue": {
            "tumor_mean": circular_mean(looks.tumor_hue),
            "tumor_peak": peak(looks.tumor_hue),
            "healthy_mean": circular_mean(looks.healthy_hue),
            "healthy_peak": peak(looks.healthy_hue),
        },
    }


def location_figure(looks: Looks) -> Figure:
    """Return the heat map of tumor pixels over the slice plane."""
    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    axes = figure.subplots()
    share = 1000 * looks.location / max(1, looks.location.sum())
    drawn = axes.imshow(share, cmap="magma", extent=(0, 1, 1, 0))
    figure.colorbar(drawn, label="‰ of all tumor pixels in a cell of 1/64 × 1/64")
    axes.set(
        title=f"Where tumors are, {len(abnormal_area(looks)):,} abnormal slices",
        xlabel="column, fraction of width",
        ylabel="row, fraction of height",
    )
    return figure


def area_figure(looks: Looks) -> Figure:
    """Return the histogram of tumor area over abnormal slices."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    area = 100 * abnormal_area(looks)
    median = quantile(area, 0.5)
    axes.hist(area, bins=30, color="tab:blue")
    axes.axvline(median, color="black", linestyle="--", label=f"median {median:.1f} %")
    axes.legend()
    axes.set(
        title=f"How large tumors are, {len(area):,} abnormal slices",
        xlabel="tumor area, % of the slice",
        ylabel="slices",
    )
    return figure


def hue_figure(looks: Looks) -> Figure:
    """Return the hue histograms of tumor and healthy tissue, each as shares of its own pixels."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    degrees = np.arange(HUE_BINS) * 360 / HUE_BINS
    for counts, label, style in (
        (looks.tumor_hue, "tumor", "-"),
        (looks.healthy_hue, "healthy tissue", "--"),
    ):
        axes.plot(degrees, 100 * counts / max(1, counts.sum()), style, label=label)
    axes.legend()
    axes.set(
        title="Hue of pre-contrast, FLAIR, post-contrast as RGB",
        xlabel="hue, degrees (0 red, 120 green, 240 blue)",
        ylabel="% of pixels in 2 degrees",
        xlim=(0, 360),
    )
    return figure


def main(images: Path, masks: Path, manifest: Path, metrics: Path, figures: Path) -> None:
    mpl.use("agg")
    table = read_manifest(manifest)
    patients = [group["slice_id"].tolist() for _, group in table.groupby("patient_id")]
    looked = process_map(
        partial(look, images=images, masks=masks),
        patients,
        chunksize=1,
        desc="explore",
        unit="patient",
        disable=None,
    )
    looks = sum(looked[1:], start=looked[0])
    drawn = {
        "location": location_figure(looks),
        "tumor_area": area_figure(looks),
        "hue": hue_figure(looks),
    }
    with replacing(figures) as [folder]:
        folder.mkdir()
        for name, figure in drawn.items():
            figure.savefig(folder / f"{name}.png", dpi=120, metadata={"Software": None})
    write_metrics(metrics, summary(table, looks))


if __name__ == "__main__":
    run(main)
