"""Measure how bright the tissue of each patient is in each sequence.

    python src/measure_tissue.py data/slices/images data/intensities.csv

`train.normalize` brings patients to one scale by it; the masks are not looked at.
"""

from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.contrib.concurrent import process_map

from pipeline.command import Refusal, run
from pipeline.outputs import DECIMALS, replacing
from scans.intensity import LEVELS, tissue_statistics
from scans.slices import SEQUENCES, SliceName, read_image, slice_path, sorted_slices


def measure_volume(images: Path, names: list[SliceName]) -> list[dict[str, str | float]]:
    """Return a row for each sequence of the patient whose slices these are."""
    counts = np.zeros((len(SEQUENCES), LEVELS), dtype=np.int64)
    for name in names:
        image = read_image(slice_path(images, name.slice_id))
        counts += [np.bincount(channel.ravel(), minlength=LEVELS) for channel in image.T]
    return [
        {"patient_id": names[0].patient_id, "sequence": sequence, **tissue_statistics(levels)}
        for sequence, levels in zip(SEQUENCES, counts, strict=True)
    ]


def main(images: Path, intensities: Path) -> None:
    volumes = [
        list(names) for _, names in groupby(sorted_slices(images), key=lambda name: name.patient_id)
    ]
    if not volumes:
        raise Refusal(f"{images}: no slices there. Run `dvc repro restructure`.")
    rows = process_map(
        measure_volume,
        [images] * len(volumes),
        volumes,
        chunksize=1,
        desc="measure",
        unit="patient",
        disable=None,
    )
    table = pd.DataFrame([row for patient in rows for row in patient])
    with replacing(intensities) as [partial]:
        table.round(DECIMALS).to_csv(partial, index=False, na_rep="")
    print(table.groupby("sequence", sort=False).mean(numeric_only=True).round(1).to_string())


if __name__ == "__main__":
    run(main)
