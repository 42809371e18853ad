"""The manifest reads back as it was written."""

from pathlib import Path

import pandas as pd

from scans.manifest import SPLITS, TEXT, read_manifest


def test_names_stay_text_and_counts_numbers(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "slice_id": ["0012_1", "NA_2"],
            "patient_id": ["0012", "NA"],
            "institution": ["NA", "1e5"],
            "image": ["a", "null"],
            "mask": ["a", "nan"],
            "abnormal": [0, 1],
            "tumor_area": [0, 12],
            "split": list(SPLITS[:2]),
        }
    )
    table.to_csv(tmp_path / "splits.csv", index=False)
    pd.testing.assert_frame_equal(read_manifest(tmp_path / "splits.csv"), table)
    assert set(TEXT) <= set(table)
