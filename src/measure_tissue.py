"""Measure the brightness of each patient's tissue in each sequence.

    python src/measure_tissue.py data/manifest.csv data/intensities.csv

`train.normalize` uses it to normalize intensities between patients. The masks are not used.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from pipeline.command import run
from pipeline.outputs import DECIMALS, replacing
from pipeline.parallel import in_parallel
from pipeline.refusals import Refusal, rebuild_hint
from scans.intensity import tissue_statistics
from scans.manifest import read_manifest
from scans.params import AcquireParams
from scans.tiff import LEVELS, read_image


def measure_volume(slices: pd.DataFrame, sequences: Sequence[str]) -> list[dict[str, str | float]]:
    """Return one row of tissue statistics per channel, from all slices of one patient."""
    counts = np.zeros((len(sequences), LEVELS), dtype=np.int64)
    for path in slices["image"]:
        image = read_image(Path(path))
        counts += [np.bincount(channel.ravel(), minlength=LEVELS) for channel in image.T]
    patient_id, levels = slices["patient_id"].iloc[0], np.arange(LEVELS)
    return [
        {"patient_id": patient_id, "sequence": sequence, **tissue_statistics(levels, pixels)}
        for sequence, pixels in zip(sequences, counts, strict=True)
    ]


def main(manifest: Path, intensities: Path, *, acquire: AcquireParams) -> None:
    slices = read_manifest(manifest, "image")
    if slices.empty:
        raise Refusal(f"{manifest}: no slices in the table; {rebuild_hint('build_manifest')}")
    volumes = [rows for _, rows in slices.groupby("patient_id")]
    measure = partial(measure_volume, sequences=acquire.channels)
    rows = in_parallel(measure, volumes, "measure")
    table = pd.DataFrame([row for patient in rows for row in patient])
    with replacing(intensities) as [written]:
        table.round(DECIMALS).to_csv(written, index=False, na_rep="")
    print(table.groupby("sequence", sort=False).mean(numeric_only=True).round(1).to_string())


if __name__ == "__main__":
    run(main)
