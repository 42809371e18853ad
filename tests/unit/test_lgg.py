"""The published data set told apart from any other."""

import shutil
from pathlib import Path

import pytest

from scans import lgg


def test_the_digest_follows_names_and_bytes_and_not_the_order_on_disk(
    phantom: Path, tmp_path: Path
) -> None:
    wanted = lgg.content_digest(phantom)
    copy = tmp_path / "copy"
    for patient in sorted(phantom.iterdir(), reverse=True):
        if patient.is_dir():
            shutil.copytree(patient, copy / patient.name)
    shutil.copy(phantom / "data.csv", copy)
    assert lgg.content_digest(copy) == wanted
    scans = sorted(copy.glob("*/*_1.tif"))
    content = scans[0].read_bytes()
    scans[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert lgg.content_digest(copy) != wanted
    scans[0].write_bytes(content)
    first, second = scans[0].read_bytes(), scans[1].read_bytes()
    scans[0].write_bytes(second)
    scans[1].write_bytes(first)
    assert lgg.content_digest(copy) != wanted
    scans[0].write_bytes(first)
    scans[1].write_bytes(second)
    assert lgg.content_digest(copy) == wanted
    (scans[0].parent / "more.TIF").touch()
    assert lgg.content_digest(copy) != wanted
    (scans[0].parent / "more.TIF").unlink()
    (copy / "data.csv").write_text("Patient\n")
    assert lgg.content_digest(copy) != wanted


def test_counts_are_told_before_the_digest(phantom: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n_files = len(list(phantom.glob("*/*.tif")))
    assert lgg.differences(phantom) == [
        "10 patients instead of 110",
        f"{n_files} TIFF files instead of 7858",
    ]
    monkeypatch.setattr(lgg, "N_PATIENTS", 10)
    monkeypatch.setattr(lgg, "N_FILES", n_files)
    assert lgg.differences(phantom) == ["other files than those published, by their SHA-256"]
