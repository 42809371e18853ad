"""acquire: copies from each source of the data set, and errors for unusable sources."""

import io
import os
import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import kagglehub
import pytest
from filelock import FileLock

import acquire
from helpers import Outcome, RunStage
from scans import lgg, sources
from servers import kaggle, serving


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def zipped(phantom: Path, *roots: str, extra: dict[str, bytes] | None = None) -> bytes:
    """Return a zip with the phantom below each root; Kaggle's zip has the data set twice."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for root in roots:
            for name, content in files(phantom).items():
                archive.writestr(f"{root}{name}", content)
        for name, content in (extra or {}).items():
            archive.writestr(name, content)
    return buffer.getvalue()


def run_acquire(run_stage: RunStage, tmp_path: Path, dataset: str, **overrides: object) -> Outcome:
    paths = [tmp_path / "data/raw", tmp_path / "data/geometry.csv"]
    return run_stage(acquire.main, paths, acquire__dataset=dataset, **overrides)


@pytest.fixture
def published(phantom: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make the phantom pass as the published data set, by its counts and its digest."""
    monkeypatch.setattr(lgg, "N_PATIENTS", 10)
    monkeypatch.setattr(lgg, "N_FILES", len(list(phantom.glob("*/*.tif"))))
    monkeypatch.setattr(lgg, "SHA256", lgg.content_digest(phantom))
    monkeypatch.delenv("LGG_ARCHIVE", raising=False)
    return phantom


def test_a_phantom_is_drawn_from_the_seed(run_stage: RunStage, tmp_path: Path) -> None:
    small = {"phantom__patients": 3, "phantom__image_size": 32}
    assert run_acquire(run_stage, tmp_path, "phantom", **small).code == 0
    first = files(tmp_path / "data/raw")
    assert len({name.split("/")[0] for name in first}) == 4  # three patients and data.csv
    assert run_acquire(run_stage, tmp_path, "phantom", **small, seed=2).code == 0
    assert files(tmp_path / "data/raw") != first


@pytest.mark.parametrize("depth", ["", "kaggle_3m", "a/b"])
def test_a_folder_is_copied_whatever_the_depth_of_its_patients(
    run_stage: RunStage, phantom: Path, tmp_path: Path, depth: str
) -> None:
    source = tmp_path / "source"
    shutil.copytree(phantom, source / depth)
    if depth == "kaggle_3m":
        shutil.copytree(phantom, source / "lgg-mri-segmentation/kaggle_3m")
    (source / depth / ".DS_Store").write_bytes(b"junk")
    (source / depth / "README.md").write_text("skipped")
    patient = next(path for path in (source / depth).iterdir() if path.is_dir())
    (patient / ".DS_Store").write_bytes(b"junk")
    (patient / "Thumbs.db").write_bytes(b"junk")
    assert run_acquire(run_stage, tmp_path, str(source)) == Outcome(0, "")
    assert files(tmp_path / "data/raw") == files(phantom)


def test_a_zip_is_unpacked_once(run_stage: RunStage, phantom: Path, tmp_path: Path) -> None:
    source = tmp_path / "archive.zip"
    junk = {"__MACOSX/kaggle_3m/._data.csv": b"junk", "kaggle_3m/.DS_Store": b"junk"}
    roots = ("kaggle_3m/", "lgg-mri-segmentation/kaggle_3m/")
    source.write_bytes(zipped(phantom, *roots, extra=junk))
    assert run_acquire(run_stage, tmp_path, str(source)) == Outcome(0, "")
    assert files(tmp_path / "data/raw") == files(phantom)


def test_lgg_archive_is_used_first_and_checked(
    run_stage: RunStage, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(published, copy)
    monkeypatch.setenv("LGG_ARCHIVE", str(copy))
    assert run_acquire(run_stage, tmp_path, "lgg") == Outcome(0, "")
    before = files(tmp_path / "data/raw")
    assert before == files(published)

    scan = sorted(copy.glob("*/*.tif"))[0]
    content = bytearray(scan.read_bytes())
    content[-1] ^= 1
    scan.write_bytes(content)
    outcome = run_acquire(run_stage, tmp_path, "lgg")
    assert outcome.code == 1
    assert f"LGG_ARCHIVE ({copy})" in outcome.error
    assert f"SHA-256 is not {lgg.SHA256}" in outcome.error
    scan.unlink()
    shutil.rmtree(sorted(path for path in copy.iterdir() if path.is_dir())[-1])
    outcome = run_acquire(run_stage, tmp_path, "lgg")
    assert "9 patients instead of 10" in outcome.error
    assert f"TIFF files instead of {lgg.N_FILES}" in outcome.error
    assert "set acquire.dataset" in outcome.error
    assert files(tmp_path / "data/raw") == before


@pytest.fixture
def kaggle_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Point kagglehub's real client at its test environment, localhost:7777, and an empty cache.

    A lock keeps other test processes from using the port at the same time.
    """
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "TEST")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "cache"))
    with FileLock(Path(tempfile.gettempdir()) / "port-7777.lock"):
        yield tmp_path / "cache"


def test_kaggle_is_downloaded_once_and_checked(
    run_stage: RunStage, published: Path, tmp_path: Path, kaggle_home: Path
) -> None:
    handler = kaggle(zipped(published, "kaggle_3m/", "lgg-mri-segmentation/kaggle_3m/"))
    with serving(handler, 7777):
        outcome = run_acquire(run_stage, tmp_path, "lgg")
        assert outcome.code == 0
        assert "100%" in outcome.error  # kagglehub's progress bar
        assert files(tmp_path / "data/raw") == files(published)
        assert run_acquire(run_stage, tmp_path, "lgg").code == 0
    downloads = [request for request in handler.requests if request.startswith("{")]
    assert downloads == [
        '{"ownerSlug": "mateuszbuda", "datasetSlug": "lgg-mri-segmentation", '
        '"datasetVersionNumber": 2}'
    ]


def test_the_size_of_the_download_is_printed_before_it_starts(
    kaggle_home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = []

    def download(handle: str) -> str:
        printed.append(capsys.readouterr().out)
        return handle

    monkeypatch.setattr(kagglehub, "dataset_download", download)
    acquire.download()
    assert "about 0.7 GB" in printed[0]
    assert f"({kaggle_home})" in printed[0]


def test_an_altered_download_is_an_error(
    run_stage: RunStage, published: Path, tmp_path: Path, kaggle_home: Path
) -> None:
    altered = zipped(published, "kaggle_3m/", extra={"kaggle_3m/TCGA_X/TCGA_X_1.tif": b"more"})
    with serving(kaggle(altered), 7777):
        outcome = run_acquire(run_stage, tmp_path, "lgg")
    assert outcome.code == 1
    assert "11 patients instead of 10" in outcome.error
    assert not (tmp_path / "data/raw").exists()


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ({"broken_after": 1000}, "download failed: "),
        ({"code": 404}, "download failed: 404 Client Error."),
        ({"code": 503}, "download failed: "),
    ],
)
def test_the_error_of_a_failed_download_says_how_else_to_get_the_data(
    run_stage: RunStage,
    published: Path,
    tmp_path: Path,
    kaggle_home: Path,
    failure: dict[str, int],
    message: str,
) -> None:
    with serving(kaggle(zipped(published, "kaggle_3m/"), **failure), 7777):
        outcome = run_acquire(run_stage, tmp_path, "lgg")
    assert outcome.code == 1
    assert message in outcome.error
    assert acquire.DOWNLOAD_HELP in outcome.error
    assert "Traceback" not in outcome.error
    assert not (tmp_path / "data/raw").exists()


def test_the_error_without_network_says_how_else_to_get_the_data(
    run_stage: RunStage, published: Path, tmp_path: Path, kaggle_home: Path
) -> None:
    outcome = run_acquire(run_stage, tmp_path, "lgg")  # nobody listens on port 7777
    assert outcome.code == 1
    assert "download failed: " in outcome.error
    for name in ("HTTPS_PROXY", "LGG_ARCHIVE", "`dvc pull`"):
        assert name in outcome.error
    assert "Traceback" not in outcome.error


def test_a_source_larger_than_the_free_disk_space_is_an_error(
    run_stage: RunStage, phantom: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    outcome = run_acquire(run_stage, tmp_path, str(phantom))
    assert outcome.code == 1
    assert f"{phantom} needs " in outcome.error
    assert "0.0 GB" in outcome.error


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_the_error_for_an_unreadable_folder_names_it(
    run_stage: RunStage, raw: Path, tmp_path: Path
) -> None:
    patient = next(path for path in raw.iterdir() if path.is_dir())
    patient.chmod(0)
    outcome = run_acquire(run_stage, tmp_path, str(raw))
    patient.chmod(0o700)
    assert (outcome.code, f"Permission denied: '{patient}'" in outcome.error) == (1, True)


def test_a_file_system_error_is_not_ignored(
    run_stage: RunStage, raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patient = next(path for path in raw.iterdir() if path.is_dir())
    scandir = os.scandir

    def failing(path: str | int) -> object:
        if path == str(patient):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    outcome = run_acquire(run_stage, tmp_path, str(raw))
    assert (outcome.code, f"Permission denied: '{patient}'" in outcome.error) == (1, True)


def test_the_digest_depends_on_names_and_bytes_not_on_the_order_on_disk(
    phantom: Path, tmp_path: Path
) -> None:
    expected = lgg.content_digest(phantom)
    copy = tmp_path / "copy"
    for patient in sorted(phantom.iterdir(), reverse=True):
        if patient.is_dir():
            shutil.copytree(patient, copy / patient.name)
    shutil.copy(phantom / "data.csv", copy)
    assert lgg.content_digest(copy) == expected
    scans = sorted(copy.glob("*/*_1.tif"))
    content = scans[0].read_bytes()
    scans[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert lgg.content_digest(copy) != expected
    scans[0].write_bytes(content)
    first, second = scans[0].read_bytes(), scans[1].read_bytes()
    scans[0].write_bytes(second)
    scans[1].write_bytes(first)
    assert lgg.content_digest(copy) != expected
    scans[0].write_bytes(first)
    scans[1].write_bytes(second)
    assert lgg.content_digest(copy) == expected
    (scans[0].parent / "more.TIF").touch()
    assert lgg.content_digest(copy) != expected
    (scans[0].parent / "more.TIF").unlink()
    (copy / "data.csv").write_text("Patient\n")
    assert lgg.content_digest(copy) != expected


def test_wrong_counts_are_reported_instead_of_the_digest(
    phantom: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_files = len(list(phantom.glob("*/*.tif")))
    assert lgg.differences(phantom) == [
        "10 patients instead of 110",
        f"{n_files} TIFF files instead of 7858",
    ]
    monkeypatch.setattr(lgg, "N_PATIENTS", 10)
    monkeypatch.setattr(lgg, "N_FILES", n_files)
    [problem] = lgg.differences(phantom)
    assert lgg.SHA256 in problem


def test_skipped_files_are_listed(
    phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    for root in ("kaggle_3m", "lgg-mri-segmentation/kaggle_3m"):
        shutil.copytree(phantom, source / root)
    patient = sorted(source.glob("kaggle_3m/PHANTOM*"))[0]
    hidden = patient.with_name(".P7")
    shutil.copytree(patient, hidden)
    for junk in ("kaggle_3m/.DS_Store", f"kaggle_3m/{patient.name}/.DS_Store", "kaggle_3m/._a"):
        (source / junk).touch()
    (source / "kaggle_3m/README.md").touch()
    (source / "kaggle_3m/.git/refs").mkdir(parents=True)  # empty, but not a patient's folder
    sources.copy_dataset(source, tmp_path / "raw", "acquire.dataset")
    assert files(tmp_path / "raw") == files(phantom)
    n_hidden, n_copied = len(list(hidden.iterdir())), len(files(phantom))
    assert capsys.readouterr().out == (
        f"left out:\n  .DS_Store: 2 files\n  .P7: {n_hidden} files\n  ._*: 1 file\n"
        f"  kaggle_3m/README.md: 1 file\n  lgg-mri-segmentation: {n_copied} files\n"
    )


def test_other_patients_in_a_deeper_folder_are_an_error(
    run_stage: RunStage, phantom: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(phantom, source / "data")
    more = source / "old/backup/P0"
    more.mkdir(parents=True)
    shutil.copy(next(phantom.glob("*/*_1.tif")), more / "P0_1.tif")
    outcome = run_acquire(run_stage, tmp_path, str(source))
    assert outcome.code == 1
    assert re.search(": data\n.*: old/backup\n", outcome.error)


def test_names_are_copied_in_one_unicode_form(
    run_stage: RunStage, phantom: Path, tmp_path: Path
) -> None:
    source, patient = tmp_path / "source", next(phantom.glob("PHANTOM*"))
    composed = "Zo\N{LATIN SMALL LETTER E WITH DIAERESIS}"
    decomposed = "Zoe\N{COMBINING DIAERESIS}"
    for suffix in ("", "_mask"):
        (source / decomposed).mkdir(parents=True, exist_ok=True)
        name = f"{decomposed}_1{suffix}.tif"
        shutil.copy(patient / f"{patient.name}_1{suffix}.tif", source / decomposed / name)
    shutil.copy(phantom / "data.csv", source)
    assert run_acquire(run_stage, tmp_path, str(source)).code == 0
    names = {path.name for path in (tmp_path / "data/raw").rglob("*")}
    assert names == {composed, f"{composed}_1.tif", f"{composed}_1_mask.tif", "data.csv"}
    shutil.copytree(source / decomposed, source / composed)
    outcome = run_acquire(run_stage, tmp_path, str(source))
    assert outcome.code == 1
    assert f"Unicode form: {composed}/{composed}_1.tif\n" in outcome.error


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS allows only UTF-8 names")
def test_a_name_that_is_not_utf8_is_an_error(
    run_stage: RunStage, phantom: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(phantom, tmp_path / "source"))
    patient = next(source.glob("PHANTOM*"))
    patient.rename(source / os.fsdecode(b"M\xfcller"))
    outcome = run_acquire(run_stage, tmp_path, str(source))
    assert outcome.code == 1
    assert r"UTF-8: b'M\xfcller/" in outcome.error
