"""The manifest: a table with one row a slice, labelled by build_manifest, completed by split."""

from pathlib import Path

import pandas as pd

SPLITS = ("train", "val", "test")
TEXT = ("slice_id", "patient_id", "institution", "image", "mask", "split")


def read_manifest(path: Path) -> pd.DataFrame:
    """Return data/manifest.csv or data/splits.csv; names stay text, also `NA` and `0012`."""
    return pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False)
