"""The figures of explore. They plot counts, never scans."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from exploration.measurements import GRID, HUE_BINS, POSITIONS, TISSUE_LEVEL, TISSUES, Measurements
from scans.sequences import channel_of, short_name

# Line styles of the two tissues; they also differ without color.
STYLES: dict[str, dict[str, Any]] = {
    "tumor": {"color": "tab:red"},
    "healthy": {"color": "tab:blue", "linestyle": "--"},
}
LABELS = {"tumor": "tumor", "healthy": f"healthy, FLAIR > {TISSUE_LEVEL}"}
FEW_PIXELS = 1000  # a histogram of fewer pixels is too noisy to draw


def shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return counts as percentages of their sum; zeros if the sum is 0."""
    return np.asarray(100 * counts / max(1, counts.sum()))


def location_figure(measured: Measurements) -> Figure:
    """Return the heat map of tumor pixels in the slice plane, with the share of each half."""
    figure = Figure(figsize=(5.6, 4.8), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(10 * shares(measured.location), cmap="magma", extent=(0, 1, 1, 0))
    figure.colorbar(drawn, label=f"‰ of all tumor pixels, in a cell of 1/{GRID} × 1/{GRID}")
    left = shares(measured.location)[:, : GRID // 2].sum()
    for column, share, side in ((0.02, left, "left"), (0.98, 100 - left, "right")):
        text = f"{side} of the image:\n{share:.0f} % of tumor pixels"
        axes.text(column, 0.02, text, color="white", ha=side, va="top", fontsize=8)
    axes.axvline(0.5, color="white", linewidth=0.5, linestyle=":")
    axes.set(
        title=f"Tumor location in the slice, n = {measured.location.sum():,} pixels",
        xlabel="column, fraction of width",
        ylabel="row, fraction of height",
    )
    return figure


def position_figure(table: pd.DataFrame) -> Figure:
    """Return the share of abnormal slices and the share of tumor pixels along the volume."""
    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    axes = figure.subplots()
    width = 1 / POSITIONS
    axes.bar(
        table["position"],
        table["abnormal_fraction"],
        0.9 * width,
        color="lightgray",
        label="abnormal slices, share at this position",
    )
    axes.plot(
        table["position"],
        table["tumor_share"],
        color="tab:red",
        marker="o",
        markersize=3,
        label=f"share of all tumor pixels, in 1/{POSITIONS} of the volume",
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(loc="upper left", fontsize=8)
    axes.set(
        title=f"Tumor location in the volume, n = {table['n_slices'].sum():,} slices",
        xlabel="position of the slice, first to last",
        xlim=(0, 1),
        ylim=(0, 1.25 * max(table["abnormal_fraction"].max(), 1e-9)),
    )
    return figure


def area_figure(area: NDArray[np.float64], patients: NDArray[np.float64]) -> Figure:
    """Return histograms of tumor size, per abnormal slice and per patient."""
    figure = Figure(figsize=(7.4, 3.6), layout="constrained")
    rows = ((area, "abnormal slices", "of the slice"), (patients, "patients", "of all pixels"))
    for axes, (values, unit, whole) in zip(figure.subplots(1, 2), rows, strict=True):
        axes.hist(100 * values, bins=30, color="tab:red")
        if len(values):
            median = 100 * float(np.median(values))
            axes.axvline(median, color="black", linestyle="--", label=f"median {median:.1f} %")
            axes.legend()
        axes.set(
            title=f"Tumor size, n = {len(values):,} {unit}", xlabel=f"tumor, % {whole}", ylabel=unit
        )
    return figure


def draw_hue(axes: Axes, measured: Measurements) -> None:
    """Draw the hue histogram of each tissue."""
    degrees = np.arange(HUE_BINS) * 360 / HUE_BINS
    for tissue, counts in zip(TISSUES, measured.hue, strict=True):
        if counts.sum() >= FEW_PIXELS:
            axes.plot(degrees, shares(counts), label=LABELS[tissue], **STYLES[tissue])
    axes.set(xlim=(0, 360), xticks=range(0, 361, 60))


def hue_figure(
    measured: Measurements, by_institution: dict[str, Measurements], sequences: Sequence[str]
) -> Figure:
    """Return hue histograms of tumor and healthy tissue, for all patients and by institution."""
    panels = {"all institutions": measured, **by_institution}
    figure = Figure(figsize=(7.4, 1 + 1.9 * -(-len(panels) // 2)), layout="constrained")
    grid = figure.subplots(-(-len(panels) // 2), 2, sharex=True, squeeze=False)
    for axes in grid.ravel()[len(panels) :]:
        axes.set_visible(False)
    for axes, (name, counted) in zip(grid.ravel(), panels.items(), strict=False):
        draw_hue(axes, counted)
        axes.set_title(f"{name}, n = {counted.hue[0].sum():,} tumor pixels", fontsize=9)
    grid[0, 0].legend(fontsize=8)
    red, green, blue = map(short_name, sequences)
    figure.suptitle(f"Hue, with {red} as red, {green} as green and {blue} as blue")
    figure.supxlabel("hue, degrees (0 red, 120 green, 240 blue)", fontsize=9)
    figure.supylabel("% of the tissue's colored pixels per 2 degrees", fontsize=9)
    return figure


def intensity_figure(measured: Measurements, sequences: Sequence[str]) -> Figure:
    """Return intensity histograms of tumor and healthy tissue, one panel per sequence."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    shown = channel_of(sequences)
    [panels] = figure.subplots(1, len(shown), sharey=True, squeeze=False)
    for axes, (sequence, channel) in zip(panels, shown.items(), strict=True):
        tissues = measured.levels[channel]
        for tissue, counts in zip(TISSUES, tissues, strict=True):
            axes.plot(shares(counts), label=LABELS[tissue], **STYLES[tissue])
        axes.set(
            title=f"{sequence}, n = {tissues[0].sum():,} tumor pixels",
            xlabel="intensity",
            xlim=(0, 255),
        )
        axes.title.set_fontsize(9)
    panels[0].set_ylabel("% of the tissue's pixels")
    panels[0].legend()
    return figure


def draw(
    measured: Measurements,
    by_institution: dict[str, Measurements],
    tables: dict[str, pd.DataFrame],
    area: NDArray[np.float64],
    sequences: Sequence[str],
) -> dict[str, Figure]:
    """Return the figures by name.

    `area` is the tumor area of each abnormal slice as a fraction of the slice; `sequences` are
    those of the three channels.
    """
    return {
        "location": location_figure(measured),
        "position": position_figure(tables["position"]),
        "tumor_area": area_figure(area, tables["per_patient"]["tumor_fraction"].to_numpy()),
        "hue": hue_figure(measured, by_institution, sequences),
        "intensity": intensity_figure(measured, sequences),
    }
