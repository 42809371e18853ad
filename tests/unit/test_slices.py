"""Names and pixels of slices."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.refusals import Refusal
from scans.names import SliceName, institution, name_key, person, sorted_slices
from scans.tiff import read_image, read_mask


def test_slices_sort_by_patient_and_number(tmp_path: Path) -> None:
    for stem in ("B_1", "A_10", "A_2", "A_1"):
        (tmp_path / f"{stem}.tif").touch()
    assert [name.slice_id for name in sorted_slices(tmp_path)] == ["A_1", "A_2", "A_10", "B_1"]


@pytest.mark.parametrize(
    ("file_name", "parsed"),
    [
        ("TCGA_CS_4941_19960909_7.tif", ("TCGA_CS_4941_19960909", 7, False)),
        ("TCGA_CS_4941_19960909_7_mask.tif", ("TCGA_CS_4941_19960909", 7, True)),
        ("Straße 3_012_MASK.TIFF", ("Straße 3", 12, True)),
        ("a_1.png", None),
        ("a.tif", None),
        ("_1.tif", None),
    ],
)
def test_names_are_parsed(file_name: str, parsed: tuple[str, int, bool] | None) -> None:
    name = SliceName.parse(file_name)
    assert (name and (name.patient_id, name.number, name.is_mask)) == parsed


@pytest.mark.parametrize(
    ("patient_id", "name"),
    [
        ("TCGA_CS_4941_19960909", "TCGA_CS_4941"),
        ("TCGA-CS-4941-01A", "TCGA-CS-4941"),
        ("PHANTOM_P2_0002_20000101", "PHANTOM_P2_0002"),
        ("P7_20000131", "P7"),
        ("P7_1996-12-09", "P7"),
        ("P7 09.12.1996", "P7"),
        ("P7_12-25-1996", "P7"),
        ("P7_1996-12", "P7"),
        ("P7_25Dec1996", "P7"),
        ("OAS1_0001_MR1", "OAS1_0001"),
        ("OAS30001_MR_d0129", "OAS30001_MR"),
        ("sub-01_ses-preop2", "sub-01"),
        ("P7_20000131_103000", "P7"),
        ("PAT_0001_MR_20150203", "PAT_0001"),
        ("sub-01_ses-02", "sub-01"),
        ("sub-01_ses-02_20000131", "sub-01"),
        ("P7_baseline", "P7"),
        ("P7 follow-up 2", "P7"),
        ("Patient-001_week-000-1", "Patient-001"),
        ("BraTS-GLI-00005-001", "BraTS-GLI-00005"),
        ("BraTS2021_00005", "BraTS2021_00005"),
        ("patient 7", "patient 7"),
        ("clinic_7", "clinic_7"),
        ("HOSP_MR_2023_00012345", "HOSP_MR_2023_00012345"),
        ("20000131", "20000131"),
        ("ses-01", "ses-01"),
    ],
)
def test_a_person_is_a_name_without_date_and_session(patient_id: str, name: str) -> None:
    assert person(patient_id) == name


@pytest.mark.parametrize(
    ("patient_id", "code"),
    [
        ("TCGA_CS_4941_19960909", "CS"),
        ("TCGA-HT-7473", "HT"),
        ("PHANTOM_P2_0002_20000101", "P2"),
        ("PAT_0001_MR_20150203", "unknown"),
        ("PAT_MR_0001_20150203", "unknown"),
        ("clinic_7", "unknown"),
    ],
)
def test_only_tcga_names_have_an_institution(patient_id: str, code: str) -> None:
    assert institution(patient_id) == code


@pytest.mark.parametrize(
    "names",
    [
        ("P-7", "p7", "P 7", "p_7", "P\N{NON-BREAKING HYPHEN}7", "P\u200b7", " P7"),
        ("Jos\N{LATIN SMALL LETTER E WITH ACUTE}", "jose\N{COMBINING ACUTE ACCENT}"),
        ("STRASSE 3", "Straße-3"),
    ],
)
def test_spellings_of_a_name_have_the_same_key(names: tuple[str, ...]) -> None:
    assert len({name_key(name) for name in names}) == 1


@pytest.mark.parametrize("names", [("site1_12", "site11_2"), ("P7", "P07"), ("a", "b"), ("-", "_")])
def test_different_names_have_different_keys(names: tuple[str, str]) -> None:
    assert name_key(names[0]) != name_key(names[1])


def test_compressed_and_big_tiff_files_are_read(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression="tiff_lzw")
    Image.fromarray(pixels).save(tmp_path / "b.tif", big_tiff=True)
    for name in ("a.tif", "b.tif"):
        np.testing.assert_array_equal(read_image(tmp_path / name), pixels)


@pytest.mark.parametrize(
    ("pixels", "mode"),
    [
        (np.zeros((4, 4), np.uint8), "L"),
        (np.zeros((4, 4), np.uint16), "I;16"),
        (np.zeros((4, 4, 4), np.uint8), "RGBA"),
        (np.zeros((4, 4), np.float32), "F"),
    ],
)
def test_an_unexpected_kind_of_image_is_an_error(
    tmp_path: Path, pixels: np.ndarray, mode: str
) -> None:
    Image.fromarray(pixels).save(tmp_path / "a_1.tif")
    with pytest.raises(Refusal, match=rf"a_1\.tif: .* 3 channels of uint8 .* mode {mode},"):
        read_image(tmp_path / "a_1.tif")


def test_a_second_page_is_an_error(tmp_path: Path) -> None:
    page = Image.fromarray(np.zeros((4, 4), np.uint8))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    with pytest.raises(Refusal, match="mode L, pages: 2"):
        read_mask(tmp_path / "a.tif")


def test_a_mask_value_other_than_0_and_255_is_an_error(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), [[False, True]])
    Image.fromarray(np.array([[0, 255, 1, 7]], np.uint8)).save(tmp_path / "a.tif")
    with pytest.raises(Refusal, match=r"a\.tif: .*\[1, 7\]"):
        read_mask(tmp_path / "a.tif")


@pytest.mark.parametrize("size", [0, 5, 100, 3000])
def test_a_truncated_file_is_an_error(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((32, 32, 3), 9, np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(Refusal, match=r"a\.tif: (not|damaged) "):
        read_image(path)


def test_a_damaged_header_raises_only_refusal(tmp_path: Path) -> None:
    """With random bytes in the header, read_image returns an image or raises Refusal."""
    path = tmp_path / "a.tif"
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(path)
    whole = path.read_bytes()
    n_header = len(whole) - 8 * 8 * 3
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(whole)
        for position in rng.integers(0, n_header, size=3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert read_image(path).ndim == 3
        except Refusal as refusal:
            assert str(path) in str(refusal)  # noqa: PT017
            refused += 1
    assert refused > 500
