"""Data sets of NIfTI files in each layout: what is read, what is refused, and who is whose."""

import json
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
from scans.sources import bring_dataset
from scans.tiff import read_image, read_mask

SMALL = {"seed": 3, "patients": 3, "image_size": 32}
LAYOUTS: tuple[Layout, ...] = ("brats", "bids", "nnunet")
FIRST = "PHANTOM_P1_0001_20000101"
THIRD = "PHANTOM_P3_0003_20000101"  # the one with all sequences


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the same phantom in each layout; not to be written to."""
    root = tmp_path_factory.mktemp("layouts")
    write_phantom(root / "slices", **SMALL)
    for layout in LAYOUTS:
        write_phantom_volumes(root / layout, layout=layout, **SMALL)
    return {layout: root / layout for layout in ("slices", *LAYOUTS)}


@pytest.fixture
def source(written: dict[str, Path], tmp_path: Path) -> Path:
    """Return a copy of the phantom as in BraTS, to be changed."""
    return Path(shutil.copytree(written["brats"], tmp_path / "source"))


class Acquired:
    """A data set after acquire."""

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
    """Run acquire on a path."""

    def call(source: Path, **overrides: object) -> Acquired:
        root = tmp_path / "run"
        paths = [root / "data/raw", root / "data/geometry.csv"]
        params = {f"acquire__{name}": value for name, value in overrides.items()}
        outcome = run_stage(acquire.main, paths, acquire__dataset=str(source), **params)
        return Acquired(root, outcome)

    return call


def described(run_stage: RunStage, found: Acquired, **overrides: object) -> list[pd.DataFrame]:
    """Return manifest and patients of a data set, as build_manifest writes them."""
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
    wanted = sorted(path for path in written["slices"].rglob("*.tif"))
    given = sorted(path for path in found.raw.rglob("*.tif"))
    assert [path.read_bytes() for path in given] == [path.read_bytes() for path in wanted]
    manifest, patients = described(run_stage, found)
    in_tiff = run(written["slices"])
    expected = described(run_stage, in_tiff)
    named = ["slice_id", "patient_id", "image", "mask"] if layout == "bids" else []
    pd.testing.assert_frame_equal(manifest.drop(columns=named), expected[0].drop(columns=named))
    persons = ["patient_id", "case_id"] if layout == "bids" else []
    pd.testing.assert_frame_equal(
        patients.drop(columns=persons), expected[1].drop(columns=persons), check_like=True
    )
    assert patients["missing_pre_contrast"].tolist() == ["1", "0", "0"]
    assert patients["missing_post_contrast"].tolist() == ["1", "1", "0"]


def test_a_zip_gives_what_its_folder_gives(
    run: Run, written: dict[str, Path], tmp_path: Path
) -> None:
    archive = tmp_path / "brats.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(written["brats"].rglob("*")):
            file.write(path, f"training/{path.relative_to(written['brats'])}")
        file.writestr("__MACOSX/training/._data.csv", b"junk")
    found = run(archive)
    assert found.outcome == Outcome(0, "")
    wanted = sorted(path for path in written["slices"].rglob("*.tif"))
    given = sorted(path for path in found.raw.rglob("*.tif"))
    assert [path.read_bytes() for path in given] == [path.read_bytes() for path in wanted]
    assert {path.name for path in tmp_path.iterdir()} == {"brats.zip", "params.yaml", "run"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_phantom_repeats_to_the_byte(
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
    """Write other values in the place of a volume, where it was or elsewhere."""
    where = volume(path)[1] if affine is None else affine
    nibabel.save(Nifti1Image(values, where), path)


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
    """FLAIR upside down stands for T2, which the third patient alone lacks in part."""
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
    _, patients = described(run_stage, found, sequences=sequences)
    assert missing_columns(patients) == missing
    if "post_contrast" in channels:
        assert patients["missing_post_contrast"].tolist() == ["1", "1", "0"]


def test_labels_choose_what_is_tumor(
    run: Run, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    masks = {path.parent.name: volume(path)[0] for path in source.glob("*/*-seg.nii.gz")}
    n_voxels = [sum(int((mask == n).sum()) for mask in masks.values()) for n in range(3)]
    for labels, wanted in ([1], (1,)), ([2], (2,)), ([1, 2], (1, 2)), ("all", (1, 2)):
        found = run(source, labels=labels)
        assert found.outcome.code == 0
        total = sum(int(found.slices(name)[1].sum()) for name in masks)
        assert total == sum(n_voxels[n] for n in wanted)
    bring_dataset(source, tmp_path / "raw", section(AcquireParams, labels=[2]))
    counts = "".join(f"  label {label}: {n:,} voxels\n" for label, n in enumerate(n_voxels))
    told = capsys.readouterr().out
    assert f"{source}: read as brats: 3 examinations as <patient>/<patient>-t2f.nii.gz" in told
    assert f"voxels by label in all masks; tumor is 2:\n{counts}" in told


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, -1), (1, -1, -1)])
def test_slices_are_axial_whatever_the_file_has(
    run: Run, source: Path, written: dict[str, Path], order: tuple[int, ...], flips: tuple[int, ...]
) -> None:
    """Every file of a patient is turned, its header with it; voxels are where they were."""
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


def test_another_sequence_is_brought_to_the_grid_of_flair(run: Run, source: Path) -> None:
    """With each voxel cut into four equal ones, it gives what it gave before."""
    before, _ = run(source).slices(THIRD)
    path = source / THIRD / f"{THIRD}-t1n.nii.gz"
    values, affine = volume(path)
    finer = affine @ np.diag([0.5, 0.5, 1, 1])
    finer[:3, 3] -= affine[:3, :2].sum(axis=1) / 4
    change(path, values.repeat(2, axis=0).repeat(2, axis=1), finer)
    after, _ = run(source).slices(THIRD)
    np.testing.assert_array_equal(after, before)


@pytest.mark.parametrize("scale", [0.5, 7.3, 400.0])
def test_intensities_are_brought_to_8_bits_by_the_99th_percentile_of_tissue(
    run: Run, source: Path, scale: float
) -> None:
    path = source / THIRD / f"{THIRD}-t2f.nii.gz"
    values, _ = volume(path)
    change(path, (values * scale).astype(np.float32))
    images, _ = run(source).slices(THIRD)
    p99 = tissue_statistics(*distinct(values))["tissue_p99"]
    turned = Axial.of(volume(path)[1]).turn(values)
    wanted = np.clip(np.rint(turned * (191 / p99)), 0, 255)
    assert np.abs(images[..., 1] - wanted).max() <= 1  # the scale is rounded to 32 bits
    statistics = tissue_statistics(*distinct(images[..., 1]))
    assert statistics["tissue_p99"] == pytest.approx(191, abs=1)


# Whose an examination is, and what is known of patients.


def test_time_points_of_a_person_stay_together(
    run: Run, run_stage: RunStage, written: dict[str, Path], tmp_path: Path
) -> None:
    """Three patients become two time points of one person, and one of another."""
    source = tmp_path / "glioma"
    names = ["BraTS-GLI-00005-000", "BraTS-GLI-00005-001", "BraTS-GLI-00012-000"]
    for old, new in zip(sorted(written["brats"].glob("PHANTOM*")), names, strict=True):
        for path in old.iterdir():
            place = source / new / path.name.replace(old.name, new)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    _, patients = described(run_stage, run(source))
    persons = ["BraTS-GLI-00005", "BraTS-GLI-00005", "BraTS-GLI-00012"]
    assert patients["case_id"].tolist() == persons


def renamed_sessions(written: dict[str, Path], source: Path, subjects: list[str]) -> Path:
    """Write the phantom of BIDS with other names of subjects and sessions."""
    for old, new in zip(sorted(written["bids"].glob("sub-*")), subjects, strict=True):
        before = f"{old.name}_ses-20000101"
        for path in written["bids"].rglob(f"{old.name}*.nii.gz"):
            folder = source / ("derivatives/lesions" if "mask" in path.name else "")
            place = folder / new.replace("_", "/") / "anat" / path.name.replace(before, new)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)
    return source


def test_sessions_of_a_subject_stay_together_and_labels_may_look_like_dates(
    run: Run, run_stage: RunStage, written: dict[str, Path], tmp_path: Path
) -> None:
    subjects = ["sub-v1_ses-1", "sub-v1_ses-2", "sub-v2"]
    source = renamed_sessions(written, tmp_path / "bids", subjects)
    (source / "participants.tsv").write_text(
        "participant_id\tage\tsex\tsite\nsub-v1\t40\tF\tOslo\nv2\tn/a\tM\tBergen\n"
    )
    manifest, patients = described(run_stage, run(source))
    assert patients["patient_id"].tolist() == subjects
    assert patients["case_id"].tolist() == ["sub-v1", "sub-v1", "sub-v2"]
    assert patients["age"].tolist() == ["40", "40", ""]
    assert patients["gender"].tolist() == ["F", "F", "M"]
    assert patients["institution"].tolist() == ["Oslo", "Oslo", "Bergen"]
    assert set(manifest["institution"]) == {"Oslo", "Bergen"}


def test_no_table_of_patients_is_needed(
    run: Run, run_stage: RunStage, source: Path, written: dict[str, Path], tmp_path: Path
) -> None:
    (source / "data.csv").unlink()
    _, patients = described(run_stage, run(source))
    assert patients["case_id"].tolist() == [name[:15] for name in patients["patient_id"]]
    slices = Path(shutil.copytree(written["slices"], tmp_path / "slices"))
    (slices / "data.csv").unlink()
    _, patients = described(run_stage, run(slices))
    assert patients["patient_id"].tolist()[0] == FIRST


def test_slice_thickness_is_read_from_bids(
    run: Run, written: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(written["bids"], tmp_path / "bids"))
    scan = next(source.glob("sub-PHANTOMP10001/**/*_FLAIR.nii.gz"))
    scan.with_name(scan.name.replace(".nii.gz", ".json")).write_text('{"SliceThickness": 4.5}')
    known = list(read_geometry(run(source).geometry).values())
    assert [each.slice_thickness for each in known] == [4.5, None, None]


def test_slices_may_come_with_a_table_of_voxel_sizes(
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
        (f"{FIRST},0,1,1", "row 2: sizes are [0.0, 1.0, 1.0], not mm above 0"),
        ("Nobody,5,1,1", "geometry.csv: no patient Nobody"),
        (f"{FIRST},5,1,1\n{FIRST},5,1,1", f"row 3: {FIRST} for the second time"),
    ):
        table.write_text(f"patient_id,slice_spacing,pixel_height,pixel_width\n{row}\n")
        assert message in run(source).outcome.error


# Which layout it is.


def test_a_mixture_of_layouts_is_refused(
    run: Run, written: dict[str, Path], tmp_path: Path
) -> None:
    both = tmp_path / "both"
    for layout in ("brats", "nnunet"):
        shutil.copytree(written[layout], both / layout)
    error = run(both).outcome.error
    assert f"{both}: may be brats: 3 examinations as <patient>/<patient>-t2f.nii.gz" in error
    assert f"{both}: may be nnunet: 3 examinations as imagesTr/<case>_0000.nii.gz" in error
    assert "set acquire.layout to one of them" in error
    assert run(both, layout="nnunet").outcome == Outcome(0, "")
    error = run(both, layout="bids").outcome.error
    assert "nothing as sub-<label>/anat/" in error
    assert "It has brats: 3 examinations" in error


def test_slices_have_the_sequences_that_they_have(run: Run, written: dict[str, Path]) -> None:
    error = run(written["slices"], sequences=["flair"], labels=[7]).outcome.error
    assert "acquire.sequences is ['flair']\nacquire.labels is [7]\n" in error
    assert "the channels of slices in TIFF are pre_contrast, flair, post_contrast" in error
    assert "the channels of phantom are" in run(Path("phantom"), labels=[7]).outcome.error


# What is malformed.


def unlink(name: str) -> Callable[[Path], object]:
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
    """Thick slices from side to side."""
    for path in (source / THIRD).iterdir():
        values, _ = volume(path)
        affine = np.array([[0, 0, 5.0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
        change(path, values, affine)


def dangling(source: Path) -> None:
    path = source / THIRD / f"{THIRD}-t1n.nii.gz"
    path.unlink()
    path.symlink_to(source.parent / "annex/objects/1")


def segm(source: Path) -> None:
    """As one patient of BraTS 2020 has it."""
    (source / THIRD / f"{THIRD}-seg.nii.gz").rename(source / THIRD / "W39_1998.09.19_Segm.nii.gz")


MALFORMED: dict[str, tuple[Callable[[Path], object], str]] = {
    "mask of another size": (altered("seg", lambda v: v[:-1]), "not on the grid of"),
    "mask moved by a voxel": (moved("seg", 7.2), "not on the grid of"),
    "no FLAIR": (unlink("t2f"), f"{THIRD}: no FLAIR, only "),
    "no mask": (unlink("seg"), f"{THIRD}: no mask"),
    "two files for FLAIR": (copied("t2f", "-flair.nii.gz"), f"{THIRD}: 2 files may be FLAIR: "),
    "two masks": (copied("seg", "_seg.nii"), f"{THIRD}: 2 files may be the mask: "),
    "scan cut off": (truncated("t2f"), "-t2f.nii.gz: damaged, its values cannot be read"),
    "T1 cut off": (truncated("t1n"), "-t1n.nii.gz: damaged, its values cannot be read"),
    "mask cut off": (truncated("seg"), "-seg.nii.gz: damaged, its values cannot be read"),
    "mask of fractions": (altered("seg", lambda v: v * np.float32(0.3)), "that are not labels"),
    "negative labels": (altered("seg", lambda v: v.astype(np.int16) - 1), "that are not labels"),
    "mask as a scan": (altered("t2f", lambda v: (v > 90).astype(np.uint8)), "only 2 "),
    "blank scan": (altered("t2f", lambda v: v * 0), "-t2f.nii.gz: only 1 "),
    "scan in 4-D": (altered("t2f", lambda v: np.stack([v, v], -1)), "4-D, (32, 32, "),
    "T1 of another place": (moved("t1n", 200), "-t1n.nii.gz covers only "),
    "sagittal slices": (sagittal, "sagittal slices 5.0 mm apart"),
    "link to nothing": (dangling, "a link to a file that is not there: "),
    "mask by another name": (segm, f"not recognized: {THIRD}/W39_1998.09.19_Segm.nii.gz"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_data_set_is_refused_with_its_file(run: Run, source: Path, name: str) -> None:
    damage, message = MALFORMED[name]
    damage(source)
    found = run(source)
    assert found.outcome.code == 1
    assert message in found.outcome.error
    assert THIRD in found.outcome.error
    assert "Traceback" not in found.outcome.error
    assert not found.raw.exists()
    assert not found.geometry.exists()


def described_as(**changes: object) -> Callable[[Path], object]:
    def damage(source: Path) -> None:
        path = source / "dataset.json"
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return damage


DESCRIBED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no JSON": (lambda source: (source / "dataset.json").write_text("{"), "cannot be read ("),
    "none": (lambda source: (source / "dataset.json").unlink(), "0 files named dataset.json"),
    "no channels": (described_as(channel_names=None), "dataset.json: no channel_names"),
    "no FLAIR": (
        described_as(channel_names={"0": "T1", "1": "ADC", "2": "T1ce"}),
        "channel_names has no FLAIR, only T1, ADC, T1ce",
    ),
    "channels as a list": (described_as(channel_names=["FLAIR"]), "channel_names and labels map"),
    "a number without end": (described_as(numTraining=float("inf")), "cannot be read ("),
    "voxels to ignore": (
        described_as(labels={"background": 0, "tumor": 1, "ignore": 2}),
        "has the label 2 for voxels to ignore: set acquire.labels",
    ),
    "other number of cases": (described_as(numTraining=4), "numTraining is 4, and there are 3"),
    "other files": (described_as(file_ending=".png"), "file_ending is '.png', not .nii.gz"),
    "a label without a name": (
        described_as(labels={"background": 0, "tumor": 1}),
        "has labels [2], which dataset.json does not name",
    ),
}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_wrong_dataset_json_is_refused(
    run: Run, written: dict[str, Path], tmp_path: Path, name: str
) -> None:
    source = Path(shutil.copytree(written["nnunet"], tmp_path / "nnunet"))
    damage, message = DESCRIBED[name]
    damage(source)
    found = run(source)
    assert (found.outcome.code, message in found.outcome.error) == (1, True), found.outcome.error
    assert not found.raw.exists()


def test_version_1_of_dataset_json_and_regions_are_read(
    run: Run, written: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(written["nnunet"], tmp_path / "nnunet"))
    names = {"0": "T1", "1": "FLAIR", "2": "T1gd"}
    labels = {"0": "background", "1": "rim", "2": "core"}
    described_as(channel_names=None, modality=names, labels=labels)(source)
    assert run(source).outcome == Outcome(0, "")
    described_as(labels={"background": 0, "whole": [1, 2], "core": 2}, numTraining="3")(source)
    assert run(source).outcome == Outcome(0, "")


def test_a_session_without_a_mask_and_a_brain_mask_are_told_apart(
    run: Run, written: dict[str, Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(written["bids"], tmp_path / "bids"))
    mask = next(source.glob("derivatives/**/sub-PHANTOMP10001*_mask.nii.gz"))
    brain = mask.with_name(mask.name.replace("label-lesion", "desc-brain"))
    shutil.copy(mask, brain)
    assert run(source).outcome == Outcome(0, "")
    shutil.copy(mask, mask.with_name(mask.name.replace("label-lesion", "desc-second")))
    assert "2 files may be the mask" in run(source).outcome.error
    for path in mask.parent.glob("*label-lesion*"), mask.parent.glob("*desc-second*"):
        for each in path:
            each.unlink()
    assert "sub-PHANTOMP10001_ses-20000101: no mask" in run(source).outcome.error


def test_a_label_that_no_mask_has_is_refused_with_those_that_there_are(
    run: Run, source: Path
) -> None:
    error = run(source, labels=[1, 4]).outcome.error
    assert "label 2: " in error
    assert "acquire.labels has [4]" in error


def test_all_offenders_are_named_at_once(run: Run, source: Path) -> None:
    for path in source.glob("*/*-seg.nii.gz"):
        change(path, volume(path)[0][:-1])
    error = run(source).outcome.error
    assert error.count("not on the grid of") == 3


def test_names_are_read_whatever_the_case_of_their_letters(run: Run, source: Path) -> None:
    folder = source / THIRD
    for path in list(folder.iterdir()):
        path.rename(folder / path.name.lower().replace("-t2f.nii.gz", "-T2F.NII.GZ"))
    assert run(source).outcome == Outcome(0, "")
    images, _ = run(source).slices(THIRD)
    assert not np.array_equal(images[..., 0], images[..., 1])


def test_masks_of_tissues_and_of_time_series_are_of_no_lesion(
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


def test_black_stays_black_in_z_scores_of_a_stripped_brain(run: Run, source: Path) -> None:
    for path in source.glob("*/*-t2f.nii.gz"):
        values = volume(path)[0].astype(np.float32)
        brain = values > 40
        change(path, np.where(brain, (values - values[brain].mean()) / values[brain].std(), 0))
    images, _ = run(source).slices(THIRD)
    before, _ = run(source.parent / "source").slices(THIRD)
    assert (images[..., 1] == 0).mean() > 0.3
    np.testing.assert_array_equal(images, before)


def test_tables_that_are_of_no_use_stop_nobody(
    run: Run, run_stage: RunStage, source: Path, tmp_path: Path
) -> None:
    """Repeated visits, names that are empty, unreadable text, an empty cell before a full one."""
    (source / "data.csv").unlink()
    rows = [f"{THIRD},,no,7", "NA,1,no,8", "NA,2,no,9"]
    (source / "a.csv").write_text("\n".join(["name,Age,missing_data,case_id", *rows]))
    (source / "b.tsv").write_text(f"id\tage\n{THIRD}\t50\n")
    (source / "visits.csv").write_text(f"id,visit\n{THIRD},1\n{THIRD},2\n")
    (source / "notes.csv").write_bytes(b"M\xfcde\n")
    found = run(source)
    assert found.outcome == Outcome(0, "")
    _, patients = described(run_stage, found)
    row = patients.set_index("patient_id").loc[THIRD]
    assert (row["clinical_missing_data"], row["other_case_id"]) == ("no", "7")
    assert row["age"] == "50"
    assert "visit" not in patients


def test_a_refusal_of_a_zip_names_the_zip(run: Run, source: Path) -> None:
    truncated("t2f")(source)
    archive = Path(shutil.make_archive(str(source), "zip", source))
    error = run(archive).outcome.error
    assert f"{archive}/{THIRD}/{THIRD}-t2f.nii.gz: damaged" in error


def test_a_disk_that_is_too_small_is_refused_before_anything_is_read(
    run: Run, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(source)._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    error = run(source).outcome.error
    assert "3 volumes" in error
    assert error.count("0.0 GB") == 2
