"""The manifest: a table with one row a slice, labelled by build_manifest, completed by split.

It is where a slice's files are looked up: `image` and `mask` are their paths, relative to the
repository's root.
"""

from pathlib import Path

import pandas as pd

from pipeline.refusals import Refusal, remake

SPLITS = ("train", "val", "test")
TEXT = ("slice_id", "patient_id", "institution", "image", "mask", "split")
REQUIRED = ("slice_id", "patient_id", "abnormal")


def splits_of(slices: pd.DataFrame) -> list[str]:
    """Return the SPLITS that a table has slices of, in their order; there may be no val."""
    return [split for split in SPLITS if (slices["split"] == split).any()]


def read_manifest(path: Path, *columns: str) -> pd.DataFrame:
    """Return data/manifest.csv or data/splits.csv; names stay text, also `NA` and `0012`.

    Refuses what is no such table, or lacks one of `columns`.
    """
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False)
    except ValueError as error:  # pandas' own kinds among them
        reason = " ".join(str(error).split())
        raise Refusal(f"{path}: not a table in CSV ({reason}); {remake('split')}") from None
    for column in (*REQUIRED, *columns):
        if column not in table:
            raise Refusal(f"{path}: no column `{column}`; {remake('split')}")
    return table


def count_near_duplicates(slices: pd.DataFrame, findings: Path) -> int:
    """Return how many pairs of near-duplicates in explore's table are on two sides of a split."""
    try:
        table = pd.read_csv(findings, keep_default_na=False, dtype=str)
        pairs = table.loc[table["kind"] == "near_duplicate", ["file", "other"]]
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())
        raise Refusal(f"{findings}: no table of findings ({reason}); {remake('explore')}") from None
    sides = slices.set_index("image")["split"]
    one, other = (pairs[column].map(sides) for column in ("file", "other"))
    return int((one.notna() & other.notna() & (one != other)).sum())
