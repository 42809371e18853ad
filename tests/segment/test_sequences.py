"""Which file is used for which sequence, and which files belong to one examination."""

import json
from functools import partial
from pathlib import Path

import pytest
from pydicom import Dataset

from heads import (
    ALL,
    NAMES_BY_SEQUENCE,
    SEQUENCES,
    Head,
    write_dicom,
    write_exam,
    write_head,
    write_slices,
)
from pipeline.refusals import Refusal
from scans.cases import Case, find_cases
from scans.dicom import DicomSeries
from scans.sequences import sequence_of


@pytest.mark.parametrize(
    ("name", "sequence"),
    [(name, sequence) for sequence, names in NAMES_BY_SEQUENCE.items() for name in names],
)
def test_sequences_are_recognized_by_names(name: str, sequence: str | None) -> None:
    assert sequence_of(name).sequence == sequence


def chosen(case: Case) -> dict[str, str]:
    """Return the chosen file name or series description of each sequence."""
    return {
        sequence: each.source.header.SeriesDescription
        if isinstance(each.source, DicomSeries)
        else each.source.name
        for sequence, each in case.choose(SEQUENCES).items()
    }


def test_a_folder_of_one_patient(patient: Path) -> None:
    (patient / "notes.txt").write_text("not a scan")
    (patient / "t2.nii.gz").write_bytes((patient / "t1.nii.gz").read_bytes())
    (patient / "._flair.nii.gz").write_bytes(b"macOS metadata")
    [case] = find_cases(patient)
    assert case.name == "patient"
    assert chosen(case) == ALL


@pytest.mark.parametrize(
    ("pattern", "suffixes"),
    [
        ("BraTS-GLI-0000{}-000-{}.nii.gz", ("t2f", "t1n", "t1c")),
        ("BraTS19_2013_{}_1_{}.nii", ("flair", "t1", "t1ce")),
        ("UCSF-PDGM-000{}_{}.nii.gz", ("FLAIR", "T1", "T1c")),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_cohort_in_one_folder_or_one_folder_per_patient(
    tmp_path: Path, head: Head, pattern: str, suffixes: tuple[str, ...], nested: bool
) -> None:
    for number in (1, 2, 3):
        names = [pattern.format(number, suffix) for suffix in suffixes]
        folder = tmp_path / f"case{number}" if nested else tmp_path
        write_head(folder, head, dict(zip(ALL, names, strict=True)))
    cases = find_cases(tmp_path)
    assert len(cases) == len({case.name for case in cases}) == 3
    for number, case in enumerate(cases, start=1):
        names = [pattern.format(number, suffix) for suffix in suffixes]
        assert chosen(case) == dict(zip(ALL, names, strict=True))


def test_bids(tmp_path: Path, head: Head) -> None:
    for exam in ("sub-01_ses-a", "sub-01_ses-b", "sub-02"):
        subject, _, session = exam.partition("_")
        names = dict(
            zip(ALL, (f"{exam}_{end}.nii.gz" for end in ("FLAIR", "T1w", "ce-gd_T1w")), strict=True)
        )
        write_head(tmp_path / subject / session / "anat", head, names)
        (tmp_path / subject / session / "anat" / f"{exam}_FLAIR.json").write_text("{}")
    cases = {case.name: chosen(case) for case in find_cases(tmp_path)}
    assert sorted(cases) == ["sub-01_ses-a", "sub-01_ses-b", "sub-02"]
    assert cases["sub-02"]["post_contrast"] == "sub-02_ce-gd_T1w.nii.gz"


def test_nnunet_with_channel_names(tmp_path: Path, head: Head) -> None:
    names = {"0": "T1", "1": "FLAIR", "2": "T1 post contrast"}
    (tmp_path / "dataset.json").write_text(json.dumps({"channel_names": names}))
    files = {"pre_contrast": 0, "flair": 1, "post_contrast": 2}
    for case in ("glioma_001", "glioma_002"):
        channels = {sequence: f"{case}_{n:04}.nii.gz" for sequence, n in files.items()}
        write_head(tmp_path / "imagesTs", head, channels)
    cases = find_cases(tmp_path)
    assert [case.name for case in cases] == ["glioma_001", "glioma_002"]
    assert chosen(cases[1])["flair"] == "glioma_002_0001.nii.gz"


def test_slices_in_tiff(tmp_path: Path, head: Head) -> None:
    for name in ("TCGA_CS_1111_20000101", "TCGA_CS_2222_20000101"):
        write_slices(tmp_path / name, head, name)
    cases = find_cases(tmp_path)
    assert [case.name for case in cases] == ["TCGA_CS_1111_20000101", "TCGA_CS_2222_20000101"]
    numbers = [int(path.stem.rpartition("_")[2]) for path in cases[0].slices]
    assert numbers == list(range(1, 13))


def test_dicom_nested_with_localizer_and_other_series(tmp_path: Path, head: Head) -> None:
    write_exam(tmp_path / "a", head)
    flair = head.sequences["flair"]
    write_dicom(tmp_path / "a/0", flair[:3], "3-plane localizer", number=9)
    write_dicom(tmp_path / "a/8", flair, "AX T2 FSE", number=8)
    [case] = find_cases(tmp_path)
    assert case.name == "P1_20200131"
    expected = {"flair": "AX T2 FLAIR", "pre_contrast": "AX T1 SE", "post_contrast": "AX T1 +C"}
    assert chosen(case) == expected


def set_values(dataset: Dataset, _: int, values: dict[str, object]) -> None:
    for name, value in values.items():
        setattr(dataset, name, value)


def test_dicom_without_descriptions_is_recognized_by_its_times(tmp_path: Path, head: Head) -> None:
    times: dict[str, dict[str, object]] = {
        "flair": {"EchoTime": 120, "RepetitionTime": 9000, "InversionTime": 2500},
        "pre_contrast": {"EchoTime": 12, "RepetitionTime": 600},
        "post_contrast": {"EchoTime": 12, "RepetitionTime": 600, "ContrastBolusAgent": "Gd"},
        "t2": {"EchoTime": 100, "RepetitionTime": 5000},
    }
    for number, (name, values) in enumerate(times.items(), start=1):
        slices = head.sequences.get(name, head.sequences["flair"])
        write_dicom(
            tmp_path / name,
            slices,
            f"series {number}",
            number=number,
            change=partial(set_values, values=values),
        )
    [case] = find_cases(tmp_path)
    expected = {"flair": "series 1", "pre_contrast": "series 2", "post_contrast": "series 3"}
    assert chosen(case) == expected


def test_an_axial_series_is_preferred(tmp_path: Path, head: Head) -> None:
    write_exam(tmp_path, head)
    write_dicom(
        tmp_path / "sagittal",
        head.sequences["pre_contrast"],
        "SAG T1",
        number=7,
        columns=(0, 1, 0),
        rows=(0, 0, -1),
    )
    [case] = find_cases(tmp_path)
    assert chosen(case)["pre_contrast"] == "AX T1 SE"


def test_several_candidates_for_a_sequence_are_listed(patient: Path) -> None:
    (patient / "t1_native.nii.gz").write_bytes((patient / "t1.nii.gz").read_bytes())
    (patient / "t2_flair.nii.gz").write_bytes((patient / "flair.nii.gz").read_bytes())
    [case] = find_cases(patient)
    with pytest.raises(Refusal) as refusal:
        case.choose(SEQUENCES)
    lines = str(refusal.value).splitlines()
    assert sorted(Path(line.rpartition(" ")[2]).name for line in lines[:-1]) == [
        *("flair.nii.gz", "t1.nii.gz", "t1_native.nii.gz", "t2_flair.nii.gz")
    ]
    assert "--flair" in lines[-1]


def test_names_of_several_examinations_in_one_folder_are_noted(tmp_path: Path, head: Head) -> None:
    """Unless several of them have a FLAIR, the folder is one patient, with a note."""
    names = dict(zip(ALL, ("A_flair.nii", "B_t1.nii", "B_t1ce.nii"), strict=True))
    write_head(tmp_path / "mixed", head, names)
    [case] = find_cases(tmp_path / "mixed")
    [note] = case.notes
    assert note.endswith("A, B")


def test_a_folder_for_each_sequence(tmp_path: Path, head: Head) -> None:
    for sequence, name in {"flair": "FLAIR", "pre_contrast": "T1"}.items():
        write_head(tmp_path / "patient" / name, head, {sequence: f"{name}.nii.gz"})
    [case] = find_cases(tmp_path / "patient")
    assert chosen(case) == {"flair": "FLAIR.nii.gz", "pre_contrast": "T1.nii.gz"}


def test_a_series_recognized_by_name_is_preferred_to_a_guessed_one(
    tmp_path: Path, head: Head
) -> None:
    write_exam(tmp_path, head)
    times: dict[str, object] = {"EchoTime": 4, "RepetitionTime": 25}
    for number, name in ((7, "unknown"), (8, "3D TOF MRA")):
        change = partial(set_values, values=times)
        slices = head.sequences["flair"]
        write_dicom(tmp_path / name, slices, name, number=number, change=change)
    [case] = find_cases(tmp_path)
    assert chosen(case)["pre_contrast"] == "AX T1 SE"
