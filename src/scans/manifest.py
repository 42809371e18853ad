"""The manifest: a table with one row per slice.

build_manifest writes it with a label for each slice; split adds the columns `split` and `fold`.
`image` and `mask` are the paths of a slice's files, relative to the repository's root.
"""

from pathlib import Path

import pandas as pd

from pipeline.refusals import Refusal, rebuild_hint

SPLITS = ("train", "val", "test")
TEXT = ("slice_id", "patient_id", "institution", "image", "mask", "split")
REQUIRED = ("slice_id", "patient_id", "abnormal")


def splits_of(slices: pd.DataFrame) -> list[str]:
    """Return the names in SPLITS that occur in the table, in that order; val may be absent."""
    return [split for split in SPLITS if (slices["split"] == split).any()]


def read_manifest(path: Path, *columns: str) -> pd.DataFrame:
    """Return data/manifest.csv or data/splits.csv; names stay text, even `NA` and `0012`.

    Raises an error if the file is not such a table or does not have all `columns`.
    """
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(TEXT, str), keep_default_na=False)
    except ValueError as error:  # pandas' parser errors are ValueErrors
        reason = " ".join(str(error).split())
        raise Refusal(f"{path}: not a CSV table ({reason}); {rebuild_hint('split')}") from None
    for column in (*REQUIRED, *columns):
        if column not in table:
            raise Refusal(f"{path}: no column `{column}`; {rebuild_hint('split')}")
    return table


def count_near_duplicates(slices: pd.DataFrame, findings: Path) -> int:
    """Return how many near-duplicate pairs in explore's table have slices in different splits."""
    try:
        table = pd.read_csv(findings, keep_default_na=False, dtype=str)
        pairs = table.loc[table["kind"] == "near_duplicate", ["file", "other"]]
    except (ValueError, KeyError, OSError) as error:
        reason = " ".join(str(error).split())
        raise Refusal(
            f"{findings}: not a table of findings ({reason}); {rebuild_hint('explore')}"
        ) from None
    splits = slices.set_index("image")["split"]
    first, second = (pairs[column].map(splits) for column in ("file", "other"))
    return int((first.notna() & second.notna() & (first != second)).sum())
