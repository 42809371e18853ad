"""NIfTI data sets in each layout: conversion, errors for malformed data, patients' tables."""

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from nibabel.nifti1 import Nifti1Image

import acquire
import build_manifest
import restructure
from helpers import Outcome, RunStage, section
from scans.cohort import missing_columns
from scans.geometry import read_geometry
from scans.intensity import distinct, tissue_statistics
from scans.params import AcquireParams
from scans.phantom import write_phantom
from scans.phantom_layouts import Layout, write_phantom_volumes
from scans.series import Axial
from scans.sources import import_dataset
from scans.tiff import read_image, read_mask

SMALL = {"seed": 3, "patients": 3, "image_size": 32}
LAYOUTS: tuple[Layout, ...] = ("brats", "bids", "nnunet")
FIRST = "PHANTOM_P1_0001_20000101"
THIRD = "PHANTOM_P3_0003_20000101"  # has all sequences


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the same phantom in each layout; do not change it."""
    root = tmp_path_factory.mktemp("layouts")
    write_phantom(root / "slices", **SMALL)
    for layout in LAYOUTS:
        write_phantom_volumes(root / layout, layout=layout, **SMALL)
    return {layout: root / layout for layout in ("slices", *LAYOUTS)}


@pytest.fixture
def source(written: dict[str, Path], tmp_path: Path) -> Path:
    """Return a copy of the phantom in the layout of BraTS, which tests may change."""
    return Path(shutil.copytree(written["brats"], tmp_path / "source"))


class Acquired:
    """The outputs of acquire."""

    def __init__(self, root: Path, outcome: Outcome) -> None:
        self.raw, self.geometry = root / "data/raw", root / "data/geometry.csv"
        self.root, self.outcome = root, outcome

    def slices(self, patient: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a patient's slices (D, H, W, 3) and masks (D, H, W)."""
        folder = self.raw / patient
        files = [folder / f"{patient}_{n + 1}" for n in range(len(list(folder.iterdir())) // 2)]
        images = np.stack([read_image(Path(f"{path}.tif")) for path in files])
        return images, np.stack([read_mask(Path(f"{path}_mask.tif")) for path in files])


Run = Callable[..., Acquired]


@pytest.fixture
def run(run_stage: RunStage, tmp_path: Path) -> Run:
    """Return a function that runs acquire on a path."""

    def call(source: Path, **overrides: object) -> Acquired:
        root = tmp_path / "run"
        paths = [root / "data/raw", root / "data/geometry.csv"]
        params = {f"acquire__{name}": value for name, value in overrides.items()}
        outcome = run_stage(acquire.main, paths, acquire__dataset=str(source), **params)
        return Acquired(root, outcome)

    return call


def build_tables(run_stage: RunStage, found: Acquired, **overrides: object) -> list[pd.DataFrame]:
    """Return the tables manifest and patients that build_manifest writes for a data set."""
    slices = [found.root / f"data/slices/{name}" for name in ("images", "masks")]
    tables = [found.root / f"data/{name}.csv" for name in ("manifest", "patients")]
    params = {f"acquire__{name}": value for name, value in overrides.items()}
    assert run_stage(restructure.main, [found.raw, *slices]).code == 0
    paths = [*slices, found.raw / "data.csv", *tables]
    assert run_stage(build_manifest.main, paths, **params) == Outcome(0, "")
    return [pd.read_csv(table, dtype=str, keep_default_na=False) for table in tables]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_slices_and_tables_of_the_phantom_in_tiff(
    run: Run, run_stage: RunStage, written: dict[str, Path], layout: Layout
) -> None:
    found = run(written[layout])
    assert found.outcome == Outcome(0, "")
    expected_files = sorted(path for path in written["slices"].rglob("*.tif"))
    files = sorted(path for path in found.raw.rglob("*.tif"))
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in expected_files]
    manifest, patients = build_tables(run_stage, found)
    in_tiff = run(written["slices"])
    expected = build_tables(run_stage, in_tiff)
    named = ["slice_id", "patient_id", "image", "mask"] if layout == "bids" else []
    pd.testing.assert_frame_equal(manifest.drop(columns=named), expected[0].drop(columns=named))
    persons = ["patient_id", "case_id"] if layout == "bids" else []
    pd.testing.assert_frame_equal(
        patients.drop(columns=persons), expected[1].drop(columns=persons), check_like=True
    )
    assert patients["missing_pre_contrast"].tolist() == ["1", "0", "0"]
    assert patients["missing_post_contrast"].tolist() == ["1", "1", "0"]


def test_a_zip_gives_the_same_slices_as_its_folder(
    run: Run, written: dict[str, Path], tmp_path: Path
) -> None:
    archive = tmp_path / "brats.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(written["brats"].rglob("*")):
            file.write(path, f"training/{path.relative_to(written['brats'])}")
        file.writestr("__MACOSX/training/._data.csv", b"junk")
    found = run(archive)
    assert found.outcome == Outcome(0, "")
    expected_files = sorted(path for path in written["slices"].rglob("*.tif"))
    files = sorted(path for path in found.raw.rglob("*.tif"))
    assert [path.read_bytes() for path in files] == [path.read_bytes() for path in expected_files]
    assert {path.name for path in tmp_path.iterdir()} == {"brats.zip", "params.yaml", "run"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_bytes_of_the_phantom_are_reproducible(
    written: dict[str, Path], tmp_path: Path, layout: Layout
) -> None:
    write_phantom_volumes(tmp_path / "again", layout=layout, **SMALL)
    for path in written[layout].rglob("*"):
        if path.is_file():
            again = tmp_path / "again" / path.relative_to(written[layout])
            assert again.read_bytes() == path.read_bytes(), path


# Sequences, labels, orientations.


def volume(path: Path) -> tuple[np.ndarray, np.ndarray]:
    image = nibabel.load(path)
    return np.asarray(image.dataobj), image.affine


def change(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> None:
    """Overwrite a volume with other values, at the same position or with another affine."""
    affine = volume(path)[1] if affine is None else affine
    nibabel.save(Nifti1Image(values, affine), path)


@pytest.mark.parametrize(
    ("sequences", "channels", "missing"),
    [
        (["flair"], ("flair", "flair", "flair"), []),
        (["t2", "flair"], ("t2", "flair", "flair"), ["missing_t2"]),
        (
            ["t2", "flair", "post_contrast"],
            ("t2", "flair", "post_contrast"),
            ["missing_t2", "missing_post_contrast"],
        ),
        (["pre_contrast", "t2"], ("pre_contrast", "t2", "t2"), ["missing_pre_contrast"]),
    ],
)
def test_sequences_fill_the_channels_around_the_main_one(
    run: Run,
    run_stage: RunStage,
    source: Path,
    sequences: list[str],
    channels: tuple[str, ...],
    missing: list[str],
) -> None:
    """The T2 of this test is FLAIR with inverted intensities."""
    for folder in sorted(source.glob("PHANTOM*")):
        flair, _ = volume(folder / f"{folder.name}-t2f.nii.gz")
        shutil.copy(folder / f"{folder.name}-t2f.nii.gz", folder / f"{folder.name}-t2w.nii.gz")
        change(folder / f"{folder.name}-t2w.nii.gz", 255 - flair)
    found = run(source, sequences=sequences)
    assert found.outcome == Outcome(0, "")
    images, _ = found.slices(THIRD)
    words = {"pre_contrast": "t1n", "flair": "t2f", "post_contrast": "t1c", "t2": "t2w"}
    for channel, name in enumerate(channels):
        values, affine = volume(source / THIRD / f"{THIRD}-{words[name]}.nii.gz")
        np.testing.assert_array_equal(images[..., channel], Axial.of(affine).turn(values))
    _, patients = build_tables(run_stage, found, sequences=sequences)
    assert missing_columns(patients) == missing
    if "post_contrast" in channels:
        assert patients["missing_post_contrast"].tolist() == ["1", "1", "0"]


def test_labels_choose_what_is_tumor(
    run: Run, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = {path.parent.name: volume(path)[0] for path in source.glob("*/*-seg.nii.gz")}
    n_voxels = [sum(int((mask == n).sum()) for mask in masks.values()) for n in range(3)]
    for labels, tumor in ([1], (1,)), ([2], (2,)), ([1, 2], (1, 2)), ("all", (1, 2)):
        found = run(source, labels=labels)
        assert found.outcome.code == 0
        total = sum(int(found.slices(name)[1].sum()) for name in masks)
        assert total == sum(n_voxels[n] for n in tumor)
    import_dataset(source, tmp_path / "raw", section(AcquireParams, labels=[2]))
    counts = "".join(f"  label {label}: {n:,} voxels\n" for label, n in enumerate(n_voxels))
    printed = capsys.readouterr().out
    assert re.search(rf"{source}: .*brats: .*: 3\b", printed)
    assert counts in printed


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
def test_slices_are_axial_for_any_orientation_of_the_file(
    run: Run, source: Path, written: dict[str, Path], order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    """All files of a patient and their headers are reoriented; positions do not change."""
    for path in (source / THIRD).iterdir():
        image = nibabel.load(path)
        codes = np.array([[axis, flip] for axis, flip in zip(order, flips, strict=True)])
        nibabel.save(image.as_reoriented(codes), path)
    found = run(source)
    assert found.outcome == Outcome(0, "")
    for path in sorted((written["slices"] / THIRD).iterdir()):
        assert (found.raw / THIRD / path.name).read_bytes() == path.read_bytes()
    known = read_geometry(found.geometry)[THIRD]
    assert known.voxel == pytest.approx((5.0, 230 / 32, 230 / 32), rel=1e-5)
    image = nibabel.load(source / THIRD / f"{THIRD}-t2f.nii.gz")
    assert known.shape == image.shape
    np.testing.assert_allclose(known.affine, image.affine, rtol=1e-6)


def test_another_sequence_is_resampled_to_the_grid_of_flair(run: Run, source: Path) -> None:
    """Splitting each voxel into four equal ones does not change the slices."""
    before, _ = run(source).slices(THIRD)
    path = source / THIRD / f"{THIRD}-t1n.nii.gz"
    values, affine = volume(path)
    finer = affine @ np.diag([0.5, 0.5, 1, 1])
    finer[:3, 3] -= affine[:3, :2].sum(axis=1) / 4
    change(path, values.repeat(2, axis=0).repeat(2, axis=1), finer)
    after, _ = run(source).slices(THIRD)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("scale", [0.5, 7.3, 400.0])
def test_intensities_are_scaled_to_8_bits_by_the_99th_percentile_of_tissue(
    run: Run, source: Path, scale: float
) -> None:
    path = source / THIRD / f"{THIRD}-t2f.nii.gz"
    values, _ = volume(path)
    change(path, (values * scale).astype(np.float32))
    images, _ = run(source).slices(THIRD)
    p99 = tissue_statistics(*distinct(values))["tissue_p99"]
    turned = Axial.of(volume(path)[1]).turn(values)
    expected = np.clip(np.rint(turned * (191 / p99)), 0, 255)
    assert np.abs(images[..., 1] - expected).max() <= 1  # the scale is rounded to 32 bits
    statistics = tissue_statistics(*distinct(images[..., 1]))
    assert statistics["tissue_p99"] == pytest.approx(191, abs=1)


# Persons and tables of patients.


def test_time_points_of_a_person_have_one_case_id(
    run: Run, run_stage: RunStage, written: dict[str, Path], tmp_path: Path
) -> None:
    """The three patients are renamed to two time points of one person and one of another."""
    source = tmp_path / "glioma"
    names = ["BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00012-000"]
    for old, new in zip(sorted(written["brats"].glob("PHANTOM*")), names, strict=True):
        for path in old.iterdir():
            place = source / new / path.name.replace(old.name, new)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    _, patients = build_tables(run_stage, run(source))
    persons = ["BraTS-GLI-00005", "BraTS-GLI-00005", "BraTS-GLI-00012"]
    assert patients["case_id"].tolist() == persons


def renamed_sessions(written: dict[str, Path], source: Path, subjects: list[str]) -> Path:
    """Write the BIDS phantom with other names of subjects and sessions."""
    for old, new in zip(sorted(written["bids"].glob("sub-*")), subjects, strict=True):
        before = f"{old.name}_ses-20000101"
        for path in written["bids"].rglob(f"{old.name}*.nii.gz"):
            folder = source / ("derivatives/lesions" if "mask" in path.name else "")
            place = folder / new.replace("_", "/") / "anat" / path.name.replace(before, new)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    return source


def test_sessions_of_a_subject_have_one_case_id_even_if_labels_look_like_sessions(
    run: Run, run_stage: RunStage, written: dict[str, Path], tmp_path: Path
) -> None:
    subjects = ["sub-v1_ses-1", "sub-v1_ses-2", "sub-v2"]
    source = renamed_sessions(written, tmp_path / "bids", subjects)
    (source / "participants.tsv").write_text(
        "participant_id\tage\tsex\tsite\nsub-v1\t40\tF\tOslo\nv2\tn/a\tM\tBergen\n"
    )
    manifest, patients = build_tables(run_stage, run(source))
    assert patients["patient_id"].tolist() == subjects
    assert patients["case_id"].tolist() == ["sub-v1", "sub-v1", "sub-v2"]
    assert patients["age"].tolist() == ["40", "40", ""]
    assert patients["gender"].tolist() == ["F", "F", "M"]
    assert patients["institution"].tolist() == ["Oslo", "Oslo", "Bergen"]
    assert set(manifest["institution"]) == {"Oslo", "Bergen"}


def test_a_table_of_patients_is_optional(
    run: Run, run_stage: RunStage, source: Path, written: dict[str, Path], tmp_path: Path
) -> None:
    (source / "data.csv").unlink()
    _, patients = build_tables(run_stage, run(source))
    assert patients["case_id"].tolist() == [name[:15] for name in patients["patient_id"]]
    slices = Path(shutil.copytree(written["slices"], tmp_path / "slices"))
    (slices / "data.csv").unlink()
    _, patients = build_tables(run_stage, run(slices))
    assert patients["patient_id"].tolist()[0] == FIRST


def test_slice_thickness_is_read_from_bids(
    run: Run, written: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(written["bids"], tmp_path / "bids"))
    scan = next(source.glob("sub-PHANTOMP10001/**/*_FLAIR.nii.gz"))
    scan.with_name(scan.name.replace(".nii.gz", ".json")).write_text('{"SliceThickness": 4.5}')
    known = list(read_geometry(run(source).geometry).values())
    assert [geometry.slice_thickness for geometry in known] == [4.5, None, None]


def test_tiff_slices_can_have_a_table_of_voxel_sizes(
    run: Run, written: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(written["slices"], tmp_path / "slices"))
    table = source / "geometry.csv"
    table.write_text(f"patient_id,slice_spacing,pixel_height,pixel_width\n{FIRST},5,0.9,0.8\n")
    found = run(source)
    assert found.outcome == Outcome(0, "")
    assert read_geometry(found.geometry)[FIRST].voxel == (5, 0.9, 0.8)
    assert not (found.raw / "geometry.csv").exists()
    for row, message in (
        (f"{FIRST},0,1,1", r"geometry\.csv: row 2: .*\[0\.0, 1\.0, 1\.0\]"),
        ("Nobody,5,1,1", r"geometry\.csv: .*Nobody"),
        (f"{FIRST},5,1,1\n{FIRST},5,1,1", rf"geometry\.csv: row 3: .*{FIRST}"),
    ):
        table.write_text(f"patient_id,slice_spacing,pixel_height,pixel_width\n{row}\n")
        assert re.search(message, run(source).outcome.error)


# Recognition of the layout.


def test_a_mixture_of_layouts_is_an_error(
    run: Run, written: dict[str, Path], tmp_path: Path
) -> None:
    both = tmp_path / "both"
    for layout in ("brats", "nnunet"):
        shutil.copytree(written[layout], both / layout)
    error = run(both).outcome.error
    for layout in ("brats", "nnunet"):
        assert re.search(rf"{both} .* {layout}: .*: 3\b", error)
    assert "Set acquire.layout" in error
    assert run(both, layout="nnunet").outcome == Outcome(0, "")
    error = run(both, layout="bids").outcome.error
    assert "sub-<label>/anat/" in error
    assert re.search(r"brats: .*: 3\b", error)


def test_params_for_nifti_are_an_error_for_tiff_slices(run: Run, written: dict[str, Path]) -> None:
    error = run(written["slices"], sequences=["flair"], labels=[7]).outcome.error
    assert "acquire.sequences is ['flair']\nacquire.labels is [7]\n" in error
    assert "TIFF slices are pre_contrast, flair, post_contrast" in error
    error = run(Path("phantom"), labels=[7]).outcome.error
    assert "acquire.labels is [7]\n" in error
    assert "channels of phantom" in error


# Malformed data sets.


def deleted(name: str) -> Callable[[Path], object]:
    return lambda source: (source / THIRD / f"{THIRD}-{name}.nii.gz").unlink()


def copied(old: str, new: str) -> Callable[[Path], object]:
    folder = THIRD
    return lambda source: shutil.copy(
        source / folder / f"{THIRD}-{old}.nii.gz", source / folder / f"{THIRD}{new}"
    )


def altered(name: str, alter: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    def damage(source: Path) -> None:
        path = source / THIRD / f"{THIRD}-{name}.nii.gz"
        change(path, alter(volume(path)[0]))

    return damage


def moved(name: str, by: float) -> Callable[[Path], object]:
    def damage(source: Path) -> None:
        path = source / THIRD / f"{THIRD}-{name}.nii.gz"
        values, affine = volume(path)
        affine[0, 3] += by
        change(path, values, affine)

    return damage


def truncated(name: str) -> Callable[[Path], object]:
    def damage(source: Path) -> None:
        path = source / THIRD / f"{THIRD}-{name}.nii.gz"
        path.write_bytes(path.read_bytes()[:-30])

    return damage


def sagittal(source: Path) -> None:
    """Make the slices thick and sagittal."""
    for path in (source / THIRD).iterdir():
        values, _ = volume(path)
        affine = np.array([[0, 0, 5.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
        change(path, values, affine)


def broken_link(source: Path) -> None:
    path = source / THIRD / f"{THIRD}-t1n.nii.gz"
    path.unlink()
    path.symlink_to(source.parent / "annex/objects/1")


def mask_renamed(source: Path) -> None:
    """Give the mask the name that one mask in BraTS 2020 has."""
    (source / THIRD / f"{THIRD}-seg.nii.gz").rename(source / THIRD / "W39_1998.09.19_Segm.nii.gz")


# The damage, and what the message must contain.
MALFORMED: dict[str, tuple[Callable[[Path], object], *tuple[str, ...]]] = {
    "mask of another size": (altered("seg", lambda v: v[:-1]), "-seg.nii.gz: ", "31 x 32 x "),
    "mask moved by a voxel": (moved("seg", 7.2), "-seg.nii.gz: ", "-t2f.nii.gz"),
    "no FLAIR": (deleted("t2f"), f"{THIRD}: no FLAIR"),
    "no mask": (deleted("seg"), f"{THIRD}: no mask"),
    "two files for FLAIR": (copied("t2f", "-flair.nii.gz"), f"{THIRD}: 2 files ", "-flair.nii.gz"),
    "two masks": (copied("seg", "_seg.nii"), f"{THIRD}: 2 files ", "_seg.nii"),
    "truncated scan": (truncated("t2f"), "-t2f.nii.gz: "),
    "truncated T1": (truncated("t1n"), "-t1n.nii.gz: "),
    "truncated mask": (truncated("seg"), "-seg.nii.gz: "),
    "mask with fractions": (altered("seg", lambda v: v * np.float32(0.3)), "-seg.nii.gz: "),
    "negative labels": (altered("seg", lambda v: v.astype(np.int16) - 1), "-seg.nii.gz: "),
    "mask as a scan": (
        altered("t2f", lambda v: (v > 90).astype(np.uint8)),
        "-t2f.nii.gz: ",
        " 2 ",
    ),
    "blank scan": (altered("t2f", lambda v: v * 0), "-t2f.nii.gz: ", " 1 "),
    "4-D scan": (altered("t2f", lambda v: np.stack([v, v], -1)), "-t2f.nii.gz: ", "(32, 32, "),
    "T1 at another position": (moved("t1n", 200), "-t1n.nii.gz"),
    "sagittal slices": (sagittal, "sagittal", "5.0 mm"),
    "broken link": (broken_link, f"{THIRD}/{THIRD}-t1n.nii.gz\n"),
    "mask with another name": (mask_renamed, "no mask", f"{THIRD}/W39_1998.09.19_Segm.nii.gz\n"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_the_error_for_a_malformed_data_set_names_its_file(
    run: Run, source: Path, name: str
) -> None:
    damage, *facts = MALFORMED[name]
    damage(source)
    found = run(source)
    assert found.outcome.code == 1
    for fact in facts:
        assert fact in found.outcome.error
    assert THIRD in found.outcome.error
    assert "Traceback" not in found.outcome.error
    assert not found.raw.exists()
    assert not found.geometry.exists()


def changed_description(**changes: object) -> Callable[[Path], object]:
    def damage(source: Path) -> None:
        path = source / "dataset.json"
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return damage


WRONG_DESCRIPTIONS: dict[str, tuple[Callable[[Path], object], *tuple[str, ...]]] = {
    "invalid JSON": (
        lambda source: (source / "dataset.json").write_text("{"),
        "dataset.json: cannot be read (",
    ),
    "none": (lambda source: (source / "dataset.json").unlink(), "dataset.json, found 0"),
    "no channels": (changed_description(channel_names=None), "dataset.json: channel_names "),
    "no FLAIR": (
        changed_description(channel_names={"0": "T1", "1": "ADC", "2": "T1ce"}),
        "channel_names has no FLAIR",
        "T1, ADC, T1ce",
    ),
    "channels as a list": (
        changed_description(channel_names=["FLAIR"]),
        "dataset.json: cannot be read (",
        "channel_names",
    ),
    "infinite number": (
        changed_description(numTraining=float("inf")),
        "dataset.json: cannot be read (",
        "infinity",
    ),
    "voxels to ignore": (
        changed_description(labels={"background": 0, "tumor": 1, "ignore": 2}),
        "label 2",
        "acquire.labels",
    ),
    "another number of cases": (
        changed_description(numTraining=4),
        "numTraining is 4",
        " 3 cases",
    ),
    "other files": (changed_description(file_ending=".png"), "file_ending is '.png'"),
    "a label without a name": (
        changed_description(labels={"background": 0, "tumor": 1}),
        "labelsTr/",
        "[2]",
        "dataset.json",
    ),
}


@pytest.mark.parametrize("name", WRONG_DESCRIPTIONS)
def test_a_wrong_dataset_json_is_an_error(
    run: Run, written: dict[str, Path], tmp_path: Path, name: str
) -> None:
    source = Path(shutil.copytree(written["nnunet"], tmp_path / "nnunet"))
    damage, *facts = WRONG_DESCRIPTIONS[name]
    damage(source)
    found = run(source)
    assert found.outcome.code == 1
    for fact in facts:
        assert fact in found.outcome.error
    assert not found.raw.exists()


def test_version_1_of_dataset_json_and_regions_are_read(
    run: Run, written: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(written["nnunet"], tmp_path / "nnunet"))
    names = {"0": "T1", "1": "FLAIR", "2": "T1gd"}
    labels = {"0": "background", "1": "rim", "2": "core"}
    changed_description(channel_names=None, modality=names, labels=labels)(source)
    assert run(source).outcome == Outcome(0, "")
    changed_description(labels={"background": 0, "whole": [1, 2], "core": 2}, numTraining="3")(
        source
    )
    assert run(source).outcome == Outcome(0, "")


def test_a_brain_mask_is_not_a_tumor_mask(
    run: Run, written: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(written["bids"], tmp_path / "bids"))
    mask = next(source.glob("derivatives/**/sub-PHANTOMP10001*_mask.nii.gz"))
    brain = mask.with_name(mask.name.replace("label-lesion", "desc-brain"))
    shutil.copy(mask, brain)
    assert run(source).outcome == Outcome(0, "")
    shutil.copy(mask, mask.with_name(mask.name.replace("label-lesion", "desc-second")))
    assert "sub-PHANTOMP10001_ses-20000101: 2 files" in run(source).outcome.error
    for pattern in ("*label-lesion*", "*desc-second*"):
        for path in mask.parent.glob(pattern):
            path.unlink()
    assert "sub-PHANTOMP10001_ses-20000101: no mask" in run(source).outcome.error


def test_the_error_for_a_label_in_no_mask_lists_the_existing_ones(run: Run, source: Path) -> None:
    error = run(source, labels=[1, 4]).outcome.error
    assert "label 2: " in error
    assert "acquire.labels" in error
    assert "[4]" in error


def test_one_error_lists_all_malformed_masks(run: Run, source: Path) -> None:
    for path in source.glob("*/*-seg.nii.gz"):
        change(path, volume(path)[0][:-1])
    error = run(source).outcome.error
    assert error.count("-seg.nii.gz") == 3


def test_the_case_of_file_names_does_not_matter(run: Run, source: Path) -> None:
    folder = source / THIRD
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.lower().replace("-t2f.nii.gz", "-T2F.NII.GZ"))
    assert run(source).outcome == Outcome(0, "")
    images, _ = run(source).slices(THIRD)
    assert not np.array_equal(images[..., 0], images[..., 1])


def test_masks_of_tissues_and_of_time_series_are_not_used(
    run: Run, written: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(written["bids"], tmp_path / "bids"))
    mask = next(source.glob("derivatives/**/sub-PHANTOMP10001*_mask.nii.gz"))
    subject = "sub-PHANTOMP10001_ses-20000101"
    for name in ("label-GM_mask", "desc-Brain_mask", "desc-brainmask_mask", "dseg"):
        shutil.copy(mask, mask.with_name(f"{subject}_{name}.nii.gz"))
    (mask.parents[1] / "func").mkdir()
    shutil.copy(mask, mask.parents[1] / f"func/{subject}_task-rest_mask.nii.gz")
    shutil.copytree(source / "sub-PHANTOMP10001", source / "sourcedata/sub-PHANTOMP10001")
    assert run(source).outcome == Outcome(0, "")


def test_the_background_of_a_skull_stripped_z_scored_brain_stays_black(
    run: Run, source: Path
) -> None:
    for path in source.glob("*/*-t2f.nii.gz"):
        values = volume(path)[0].astype(np.float32)
        brain = values > 40
        change(path, np.where(brain, (values - values[brain].mean()) / values[brain].std(), 0))
    images, _ = run(source).slices(THIRD)
    before, _ = run(source.parent / "source").slices(THIRD)
    assert (images[..., 1] == 0).mean() > 0.3
    np.testing.assert_array_equal(images, before)


def test_unusable_tables_are_ignored(
    run: Run, run_stage: RunStage, source: Path, tmp_path: Path
) -> None:
    """They have repeated visits, empty names, or text that is not UTF-8.

    A value is taken from the next table if the first one has an empty cell.
    """
    (source / "data.csv").unlink()
    rows = [f"{THIRD},,no,7", "NA,1,no,8", "NA,2,no,9"]
    (source / "a.csv").write_text("\n".join(["name,Age,missing_data,case_id", *rows]))
    (source / "b.tsv").write_text(f"id\tage\n{THIRD}\t50\n")
    (source / "visits.csv").write_text(f"id,visit\n{THIRD},1\n{THIRD},2\n")
    (source / "notes.csv").write_bytes(b"M\xfcde\n")
    found = run(source)
    assert found.outcome == Outcome(0, "")
    _, patients = build_tables(run_stage, found)
    row = patients.set_index("patient_id").loc[THIRD]
    assert (row["clinical_missing_data"], row["other_case_id"]) == ("no", "7")
    assert row["age"] == "50"
    assert "visit" not in patients


def test_an_error_in_a_zip_names_the_zip(run: Run, source: Path) -> None:
    truncated("t2f")(source)
    archive = Path(shutil.make_archive(str(source), "zip", source))
    error = run(archive).outcome.error
    assert f"{archive}/{THIRD}/{THIRD}-t2f.nii.gz: " in error


def test_a_disk_that_is_too_small_is_an_error(
    run: Run, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(source)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    error = run(source).outcome.error
    assert "3 volumes" in error
    assert "0.0 GB" in error
