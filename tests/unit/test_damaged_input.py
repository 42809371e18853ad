"""Damaged and hostile input: one message with the file and the way out, and nothing written.

Each row of DAMAGED spoils a source of data and is sent through the data stages as `dvc repro` would
send it; each row of SPOILED spoils a file that a later stage reads.
"""

import io
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import acquire
import build_manifest
import evaluate
import measure_tissue
import predict
import restructure
import split
import train
from helpers import SIZE, Data, Outcome, RunStage
from learning.network import Encoder, build_encoder
from learning.weights import Model, new_network, save_tensors
from pipeline.outputs import file_sha256
from scans.phantom import write_phantom
from scans.probability_maps import probability_path

P1, P2 = "PHANTOM_P1_0001_20000101", "PHANTOM_P2_0002_20000101"
SCAN, MASK = f"{P1}/{P1}_3.tif", f"{P1}/{P1}_3_mask.tif"
Damage = Callable[[Path], Path | None]  # of a folder of patients; returns the source if another


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of four phantom patients; not to be written to."""
    folder = tmp_path_factory.mktemp("patients") / "raw"
    write_phantom(folder, seed=3, patients=4, image_size=SIZE)
    return folder


def in_tiff(image: np.ndarray) -> bytes:
    """Return an image as OpenCV writes it, which also has 16 bits a channel."""
    return bytes(cv2.imencode(".tif", image)[1])


def pixels(*shape: int, value: int = 0, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.full(shape, value, dtype))


def saved(place: str, image: Image.Image, **options: Any) -> Damage:
    """Put an image in the place of a file."""

    def damage(folder: Path) -> None:
        image.save(folder / place, **({"format": "TIFF"} | options))

    return damage


def changed(place: str, change: Callable[[bytes], bytes]) -> Damage:
    """Change the bytes of a file, which is empty where there was none."""

    def damage(folder: Path) -> None:
        path = folder / place
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))

    return damage


def written(place: str, content: bytes) -> Damage:
    return changed(place, lambda _: content)


def removed(pattern: str) -> Damage:
    def damage(folder: Path) -> None:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def copied(place: str, to: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / to).parent.mkdir(exist_ok=True)
        shutil.copy(folder / place, folder / to)

    return damage


def linked(place: str, to: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / place).symlink_to(to)

    return damage


def pipe(folder: Path) -> None:
    os.mkfifo(folder / f"{P1}/{P1}_99.tif")


def empty_folder(folder: Path) -> None:
    (folder / "PHANTOM_P9_0099_20000101").mkdir()


def under_another_name(folder: Path) -> None:
    """Copy a patient, as somebody of whom the same scans came twice."""
    (folder / "clinic_7").mkdir()
    for path in (folder / P1).iterdir():
        shutil.copy(path, folder / "clinic_7" / path.name.replace(P1, "clinic_7"))


def two_sites(folder: Path) -> None:
    for number, patient in enumerate(sorted(folder.glob("PHANTOM*"))):
        site = folder / ("siteA", "siteB")[number % 2]
        site.mkdir(exist_ok=True)
        patient.rename(site / patient.name)
        shutil.copy(folder / "data.csv", site)
    (folder / "data.csv").unlink()


def healthy(folder: Path) -> None:
    for mask in folder.glob("*/*_mask.tif"):
        pixels(SIZE, SIZE).save(mask)


def but_for(n_patients: int) -> Damage:
    def damage(folder: Path) -> None:
        for path in sorted(folder.glob("PHANTOM*"))[n_patients:]:
            shutil.rmtree(path)

    return damage


def absent(folder: Path) -> Path:
    return folder / "nowhere"


def huge_header(content: bytes, size: int = 60_000) -> bytes:
    """Return a TIFF that claims so many pixels along each side."""
    start = struct.unpack_from("<I", content, 4)[0]
    changed = bytearray(content)
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", content, start)[0], 12):
        if struct.unpack_from("<H", content, entry)[0] in (256, 257):
            struct.pack_into("<HIHH", changed, entry + 2, 3, 1, size, 0)
    return bytes(changed)


def zipped(change: Callable[[bytes], bytes] = bytes, extra: tuple[str, ...] = ()) -> Damage:
    """Zip the folder, with more entries, and change the bytes of the zip."""

    def damage(folder: Path) -> Path:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                archive.write(path, path.relative_to(folder))
            for name in extra:
                archive.writestr(name, b"x")
        source = folder.with_name("source.zip")
        source.write_bytes(change(file.getvalue()))
        return source

    return damage


def encrypted(archive: bytes) -> bytes:
    """Return the zip with the flag of encryption set in each entry."""
    content = bytearray(archive)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = content.find(signature)
        while position >= 0:
            content[position + offset] |= 1
            position = content.find(signature, position + 4)
    return bytes(content)


def first_file_of_zip(archive: bytes) -> tuple[int, int]:
    """Return where the headers of the zip's first file lie, the local and the central one."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        info = next(info for info in opened.infolist() if not info.is_dir())
    name = info.filename.encode()
    return info.header_offset, archive.rindex(name, 0, archive.rindex(b"PK\x05\x06")) - 46


def corrupted(archive: bytes) -> bytes:
    """Return the zip with bytes of its first file's data changed."""
    local, _ = first_file_of_zip(archive)
    name_length = struct.unpack_from("<H", archive, local + 26)[0]
    start = local + 30 + name_length
    return archive[:start] + b"\xff" * 10 + archive[start + 10 :]


def claiming(n_bytes: int) -> Callable[[bytes], bytes]:
    """Return a zip whose first file claims to unpack to so many bytes."""

    def change(archive: bytes) -> bytes:
        local, central = first_file_of_zip(archive)
        content = bytearray(archive)
        struct.pack_into("<I", content, local + 22, n_bytes)
        struct.pack_into("<I", content, central + 24, n_bytes)
        return bytes(content)

    return change


def unknown_compression(archive: bytes) -> bytes:
    local, central = first_file_of_zip(archive)
    content = bytearray(archive)
    struct.pack_into("<H", content, local + 8, 97)
    struct.pack_into("<H", content, central + 10, 97)
    return bytes(content)


NOT_A_TIFF = "not a TIFF image that can be read"
NO_ZIP = "source.zip', no sound zip file: "
CSV = "raw/data.csv: not a table in CSV"
WRONG_SCAN = "expected 3 channels of uint8 in one page, found mode "
WRONG_MASK = "expected 1 channel of uint8 in one page, found mode "
SINGLE_PAGE = {"save_all": True, "append_images": [pixels(SIZE, SIZE)]}

# What is done to the source, the stage that refuses it, and what it says.
DAMAGED: dict[str, tuple[Damage, str, str]] = {
    "no such source": (absent, "acquire", "nowhere', which is neither a folder nor a zip file"),
    "nothing in it": (removed("*"), "acquire", "no data set in "),
    "no patient": (removed("PHANTOM*"), "acquire", "no data set in "),
    "two folders of patients": (
        two_sites,
        "acquire",
        "a folder of patients: siteA\na folder of patients: siteB\n",
    ),
    "link out": (
        linked(f"{P1}/{P1}_99.tif", "/etc/hostname"),
        "acquire",
        f"neither a file nor a folder: {{source}}/{P1}/{P1}_99.tif",
    ),
    "link in a loop": (
        linked(f"{P1}/loop", ".."),
        "acquire",
        f"neither a file nor a folder: {{source}}/{P1}/loop",
    ),
    "link to nothing": (
        linked(f"{P1}/{P1}_99.tif", "nowhere.tif"),
        "acquire",
        f"neither a file nor a folder: {{source}}/{P1}/{P1}_99.tif",
    ),
    "pipe": (pipe, "acquire", f"neither a file nor a folder: {{source}}/{P1}/{P1}_99.tif"),
    "zip with ..": (zipped(extra=("../evil.tif",)), "acquire", "path out of the zip: ../evil.tif"),
    "zip with an absolute path": (
        zipped(extra=("/evil.tif",)),
        "acquire",
        "path out of the zip: /evil.tif",
    ),
    "zip with ..\\": (
        zipped(extra=("..\\evil.tif",)),
        "acquire",
        "path out of the zip: ..\\evil.tif",
    ),
    "zip with a drive": (
        zipped(extra=("C:\\evil.tif",)),
        "acquire",
        "path out of the zip: C:\\evil.tif",
    ),
    "zip with a name twice": (
        zipped(extra=("./data.csv",)),
        "acquire",
        "twice in the zip: data.csv",
    ),
    "encrypted zip": (zipped(encrypted), "acquire", "encrypted: "),
    "zip cut off": (zipped(lambda content: content[:-100]), "acquire", NO_ZIP),
    "zip with a changed file": (zipped(corrupted), "acquire", NO_ZIP),
    "empty zip file": (zipped(lambda _: b""), "acquire", NO_ZIP),
    "zip without files": (
        zipped(lambda _: b"PK\x05\x06" + bytes(18)),
        "acquire",
        "no data set in ",
    ),
    "zip of an unknown compression": (zipped(unknown_compression), "acquire", NO_ZIP),
    "zip bomb": (
        zipped(claiming(0xFFFFFFF0)),
        "acquire",
        "source.zip: PHANTOM_P1_0001_20000101/PHANTOM_P1_0001_20000101_1.tif of 4.3 GB, too large",
    ),
    "zip that claims too little": (zipped(claiming(10)), "acquire", NO_ZIP),
    "missing mask": (removed(MASK), "restructure", f"scan without mask: {{raw}}/{SCAN}"),
    "mask alone": (removed(SCAN), "restructure", f"mask without scan: {{raw}}/{MASK}"),
    "foreign file": (
        written(f"{P1}/notes.txt", b"left here"),
        "restructure",
        f"not a slice: {{raw}}/{P1}/notes.txt",
    ),
    "slice without number": (
        copied(SCAN, f"{P1}/{P1}_three.tif"),
        "restructure",
        f"not a slice: {{raw}}/{P1}/{P1}_three.tif",
    ),
    "folder in a patient's folder": (
        copied(SCAN, f"{P1}/more/{P1}_3.tif"),
        "restructure",
        f"not a slice: {{raw}}/{P1}/more",
    ),
    "slice of another patient": (
        copied(f"{P2}/{P2}_1.tif", f"{P1}/{P2}_1.tif"),
        "restructure",
        f"slice of another patient: {{raw}}/{P1}/{P2}_1.tif",
    ),
    "slice number twice": (
        copied(SCAN, f"{P1}/{P1}_03.tif"),
        "restructure",
        f"slice number twice: {{raw}}/{P1}/{P1}_03.tif, {{raw}}/{SCAN}",
    ),
    "suffix in two spellings": (
        copied(SCAN, f"{P1}/{P1}_3.TIFF"),
        "restructure",
        f"slice number twice: {{raw}}/{P1}/{P1}_3.TIFF, {{raw}}/{SCAN}",
    ),
    "scans of two persons": (
        under_another_name,
        "build_manifest",
        f"the same scan of two persons: {{images}}/{P1}_1.tif, {{images}}/clinic_7_1.tif",
    ),
    "file cut off": (changed(SCAN, lambda b: b[:999]), "restructure", f"{SCAN}: damaged TIFF"),
    "file of half its pixels": (
        changed(SCAN, lambda b: b[: len(b) // 2]),
        "restructure",
        f"{SCAN}: damaged TIFF",
    ),
    "empty file": (written(SCAN, b""), "restructure", f"{SCAN}: {NOT_A_TIFF}"),
    "text": (written(SCAN, b"no image"), "restructure", f"{SCAN}: {NOT_A_TIFF}"),
    "pickle": (
        written(SCAN, b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR."),
        "restructure",
        f"{SCAN}: {NOT_A_TIFF}",
    ),
    "PNG": (
        saved(SCAN, pixels(SIZE, SIZE, 3), format="PNG"),
        "restructure",
        f"{SCAN}: {NOT_A_TIFF}",
    ),
    "claims to be huge": (changed(SCAN, huge_header), "restructure", f"{SCAN}: damaged TIFF"),
    "claims to be large": (
        changed(SCAN, lambda b: huge_header(b, 13_000)),
        "restructure",
        f"{SCAN}: (13000, 13000) pixels, more than 4096 along a side",
    ),
    "scan of 3 channels of 16 bits": (
        written(SCAN, in_tiff(np.full((SIZE, SIZE, 3), 700, np.uint16))),
        "restructure",
        f"{SCAN}: {WRONG_SCAN}RGB, pages: 1, channels: 3, bits of each: (16, 16, 16)",
    ),
    "gray scan": (saved(SCAN, pixels(SIZE, SIZE)), "restructure", f"{SCAN}: {WRONG_SCAN}L"),
    "scan of 16 bits": (
        saved(SCAN, pixels(SIZE, SIZE, dtype=np.uint16)),
        "restructure",
        f"{SCAN}: {WRONG_SCAN}I;16",
    ),
    "scan of floats": (
        saved(SCAN, pixels(SIZE, SIZE, dtype=np.float32)),
        "restructure",
        f"{SCAN}: {WRONG_SCAN}F",
    ),
    "scan of 4 channels": (
        saved(SCAN, pixels(SIZE, SIZE, 4)),
        "restructure",
        f"{SCAN}: {WRONG_SCAN}RGBA",
    ),
    "scan of another size": (
        saved(SCAN, pixels(SIZE - 1, SIZE, 3)),
        "restructure",
        f"{MASK}: mask of {SIZE}x{SIZE} for a scan of {SIZE - 1}x{SIZE}",
    ),
    "mask of another size": (
        saved(MASK, pixels(SIZE, SIZE + 1)),
        "restructure",
        f"{MASK}: mask of {SIZE}x{SIZE + 1} for a scan of {SIZE}x{SIZE}",
    ),
    "mask in color": (
        saved(MASK, pixels(SIZE, SIZE, 3)),
        "restructure",
        f"{MASK}: {WRONG_MASK}RGB",
    ),
    "mask of 1 bit": (
        saved(MASK, pixels(SIZE, SIZE).convert("1")),
        "restructure",
        f"{MASK}: {WRONG_MASK}1,",
    ),
    "mask of 0 and 1": (
        saved(MASK, pixels(SIZE, SIZE, value=1)),
        "restructure",
        f"{MASK}: mask values are 0 and 255, found also [1]",
    ),
    "mask of two pages": (
        saved(MASK, pixels(SIZE, SIZE), **SINGLE_PAGE),
        "restructure",
        f"{MASK}: {WRONG_MASK}L, pages: 2",
    ),
    "patient without slices": (
        empty_folder,
        "acquire",
        "empty folder: {source}/PHANTOM_P9_0099_20000101",
    ),
    "empty data.csv": (written("data.csv", b""), "build_manifest", CSV),
    "data.csv with ragged rows": (
        written("data.csv", b"Patient\nA,1\nB,1,2,3\n"),
        "build_manifest",
        CSV,
    ),
    "data.csv of no text": (
        written("data.csv", b"Patient,x\nA\xff\xfe,1\n"),
        "build_manifest",
        CSV,
    ),
    "data.csv with an open quote": (
        written("data.csv", b'Patient,x\n"A,1\n'),
        "build_manifest",
        CSV,
    ),
    "data.csv without Patient": (
        written("data.csv", b"Name\nA\n"),
        "build_manifest",
        "raw/data.csv: no column `Patient`, only ['Name']",
    ),
    "data.csv with a patient twice": (
        written("data.csv", b"Patient\nA\nA\n"),
        "build_manifest",
        "raw/data.csv: more than one row for ['A']; keep one row a patient",
    ),
    "data.csv with a column twice": (
        written("data.csv", b"Patient,case_id\nA,1\n"),
        "build_manifest",
        "raw/data.csv: more than one column for ['case_id']",
    ),
    "one patient": (but_for(1), "split", "split.folds is 3, with 1 patients only; use fewer"),
    "three patients": (but_for(3), "split", "split.folds is 3, with 3 patients only; use fewer"),
    "no tumor": (healthy, "split", "no abnormal slice in train\nno abnormal slice in test\n"),
}

WAYS_OUT = (
    "Expected <patient>/",
    "; correct the path",
    "; fetch or make it anew",
    "Check where it comes from.",
    "or put all patients into one folder.",
    "Put the files themselves in their place, or take away what is none.",
    "source.zip anew.",
    "docs/own-data.md shows each with an example.",
    "keep or rename one",
    "keep one row a patient",
    "needs that column alone",
    "correct it where it comes from, then `dvc repro -f acquire`",
    "use fewer folds or more patients",
    "Choose a test fold that has some, fewer split.folds, or add patients.",
    "Otherwise take one away. Then `dvc repro -f acquire`.",
)
DATA_STAGES = ("acquire", "restructure", "build_manifest", "measure_tissue", "split")


def travel(run_stage: RunStage, source: Path, folder: Path) -> tuple[str, Outcome]:
    """Send a source through the data stages; return the last one that ran, and how it ended."""
    raw, images, masks = folder / "raw", folder / "images", folder / "masks"
    manifest, table = folder / "manifest.csv", folder / "patients.csv"
    findings = folder.parent / "findings.csv"
    stages: dict[str, tuple[Callable[..., None], list[Path]]] = {
        "acquire": (acquire.main, [raw, folder / "geometry.csv"]),
        "restructure": (restructure.main, [raw, images, masks]),
        "build_manifest": (build_manifest.main, [images, masks, raw / "data.csv", manifest, table]),
        "measure_tissue": (measure_tissue.main, [manifest, folder / "intensities.csv"]),
        "split": (split.main, [manifest, table, findings, folder / "splits.csv"]),
    }
    findings.write_text("kind,file,patient_id,value,other\n")
    overrides = {"acquire__dataset": str(source), "split__folds": 3}
    for name, (main, paths) in stages.items():
        outcome = run_stage(main, paths, **overrides)
        if outcome.code:
            return name, outcome
    return "split", outcome


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_source_is_refused_by_name_and_nothing_written(
    run_stage: RunStage, patients: Path, tmp_path: Path, name: str
) -> None:
    damage, stage, message = DAMAGED[name]
    folder = Path(shutil.copytree(patients, tmp_path / "source"))
    source, out = damage(folder) or folder, tmp_path / "data"
    refused_by, outcome = travel(run_stage, source, out)
    assert (refused_by, outcome.code) == (stage, 1), outcome.error
    places = {"source": folder, "raw": out / "raw", "images": out / "images"}
    assert message.format_map(places) in outcome.error
    assert "error: " in outcome.error
    assert "Traceback" not in outcome.error
    assert any(way_out in outcome.error for way_out in WAYS_OUT)
    made = {"acquire": {"geometry.csv", "raw"}, "restructure": {"images", "masks"}}
    made |= {"build_manifest": {"manifest.csv", "patients.csv"}, "split": {"splits.csv"}}
    made |= {"measure_tissue": {"intensities.csv"}}
    before = DATA_STAGES[: DATA_STAGES.index(stage)]
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    assert found == {output for earlier in before for output in made[earlier]}
    assert {path.name for path in tmp_path.iterdir()} <= {
        "data",
        "findings.csv",
        "source",
        "source.zip",
        "params.yaml",
    }


def test_the_same_source_undamaged_passes(
    run_stage: RunStage, patients: Path, tmp_path: Path
) -> None:
    assert len(DAMAGED) + len(SPOILED) >= 40
    assert travel(run_stage, patients, tmp_path / "folder") == ("split", Outcome(0, ""))
    folder = Path(shutil.copytree(patients, tmp_path / "source"))
    source = zipped()(folder)
    assert source is not None
    assert travel(run_stage, source, tmp_path / "zip") == ("split", Outcome(0, ""))
    windows = with_backslashes(source)
    assert travel(run_stage, windows, tmp_path / "win") == ("split", Outcome(0, ""))
    tables = [(tmp_path / name / "splits.csv").read_bytes() for name in ("folder", "zip", "win")]
    assert tables[0].replace(b"/folder/", b"/zip/") == tables[1]
    assert tables[1].replace(b"/zip/", b"/win/") == tables[2]


def with_backslashes(source: Path) -> Path:
    """Return a copy of a zip as Windows PowerShell makes it, folders too."""
    copy = source.with_name("windows.zip")
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(copy, "w") as written:
        for info in archive.infolist():
            content = archive.read(info)
            info.filename = info.filename.replace("/", "\\")
            written.writestr(info, content)
    return copy


class Files:
    """What the later stages read: a network of random weights, and its answers of nothing."""

    def __init__(self, data: Data, folder: Path) -> None:
        torch.manual_seed(0)
        self.data, self.folder = data, folder
        self.encoder, self.unet = folder / "encoder.safetensors", folder / "unet.safetensors"
        self.splits = Path(shutil.copy(data.splits, folder))
        self.intensities = Path(shutil.copy(data.intensities, folder))
        save_tensors(
            build_encoder("mobilenet_v2").state_dict(), Encoder("mobilenet_v2"), self.encoder
        )
        network = new_network(self.encoder, name="mobilenet_v2", frozen=True)
        header = Model("mobilenet_v2", file_sha256(self.encoder), True, 32, 0, "z_score")
        save_tensors(network.trained_tensors(), header, self.unet)
        self.predictions = folder / "predictions"
        self.predictions.mkdir()
        for path in data.masks.glob("*.tif"):
            self.level(path.stem).save(probability_path(self.predictions, path.stem))

    @staticmethod
    def level(_: str) -> Image.Image:
        return pixels(SIZE, SIZE)

    @property
    def one_map(self) -> Path:
        return min(self.predictions.iterdir())

    def run(self, run_stage: RunStage, stage: str) -> Outcome:
        out, tables = self.folder / "out", (self.intensities, self.splits)
        answers = out / "a", out / "b"
        stages: dict[str, tuple[Callable[..., None], list[Path]]] = {
            "train": (train.main, [*tables, self.encoder, out / "unet", out / "metrics"]),
            "predict": (predict.main, [*tables, self.encoder, self.unet, out / "maps"]),
            "evaluate": (
                evaluate.main,
                [self.data.geometry, self.splits, self.data.patients, self.predictions, *answers],
            ),
        }
        main, paths = stages[stage]
        quick = {"compute__device": "cpu", "compute__workers": 0, "train__image_size": 32}
        quick |= {"train__normalize": "z_score"}
        return run_stage(main, paths, **quick)


def headed(name: str, header: str) -> Callable[[Files], None]:
    """Give a safetensors file another header."""

    def spoil(files: Files) -> None:
        path: Path = getattr(files, name)
        save_file(load_file(path), path, metadata={"network": header})

    return spoil


def bytes_of(name: str, change: Callable[[bytes], bytes]) -> Callable[[Files], None]:
    def spoil(files: Files) -> None:
        path: Path = getattr(files, name)
        path.write_bytes(change(path.read_bytes()))

    return spoil


def other_encoder(files: Files) -> None:
    save_tensors(build_encoder("resnet18").state_dict(), Encoder("resnet18"), files.encoder)


def pickled(files: Files) -> None:
    torch.save(build_encoder("mobilenet_v2").state_dict(), files.encoder)


def not_finite(files: Files) -> None:
    tensors = load_file(files.encoder)
    tensors["features.0.0.weight"][0] = torch.nan
    save_file(tensors, files.encoder)


def model_of_another_encoder(files: Files) -> None:
    tensors = load_file(files.encoder)
    tensors["features.0.0.weight"] += 1
    save_tensors(tensors, Encoder("mobilenet_v2"), files.encoder)


def no_map(files: Files) -> None:
    files.one_map.unlink()


def model_header(**changes: Any) -> Callable[[Files], None]:
    def spoil(files: Files) -> None:
        header = Model("mobilenet_v2", file_sha256(files.encoder), True, 32, 0, "none")
        save_tensors(load_file(files.unet), replace(header, **changes), files.unet)

    return spoil


SOUND = "not a valid safetensors file"
HEADER = "header field "
SPOILED: dict[str, tuple[Callable[[Files], None], str, str]] = {
    "no encoder": (lambda f: f.encoder.unlink(), "train", "encoder.safetensors: no such file"),
    "encoder of another kind": (other_encoder, "train", "does not fit encoder.name 'mobilenet_v2'"),
    "encoder cut off": (bytes_of("encoder", lambda b: b[:-9]), "train", SOUND),
    "encoder empty": (bytes_of("encoder", lambda _: b""), "train", SOUND),
    "encoder pickled": (pickled, "train", SOUND),
    "encoder not finite": (not_finite, "train", "not finite, such as features.0.0"),
    "encoder with a number for mean": (headed("encoder", '{"mean": 5}'), "train", HEADER),
    "encoder with text for std": (headed("encoder", '{"std": ["a", 1, 1]}'), "train", HEADER),
    "encoder with std of 0": (headed("encoder", '{"std": [0, 1, 1]}'), "train", HEADER),
    "model cut off": (bytes_of("unet", lambda b: b[:-9]), "predict", SOUND),
    "model that is no model": (headed("unet", "{}"), "predict", HEADER),
    "model with a strange size": (model_header(image_size="big"), "predict", HEADER),
    "model of negative size": (model_header(image_size=-1), "predict", HEADER),
    "model of a foreign kind": (model_header(encoder_name="nonsense"), "predict", "'nonsense'"),
    "model of another encoder": (
        model_of_another_encoder,
        "predict",
        "was trained on another encoder than",
    ),
    "splits not a table": (bytes_of("splits", lambda _: b""), "train", "splits.csv: "),
    "splits without a column": (
        bytes_of("splits", lambda b: b.replace(b"abnormal", b"ill")),
        "train",
        "splits.csv: no column `abnormal`",
    ),
    "splits without the paths of scans": (
        bytes_of("splits", lambda b: b.replace(b",image,", b",file,")),
        "train",
        "splits.csv: no column `image`",
    ),
    "splits without slice numbers": (
        bytes_of("splits", lambda b: b.replace(b"slice_number", b"position")),
        "evaluate",
        "splits.csv: no column `slice_number`",
    ),
    "scan gone": (
        bytes_of("splits", lambda b: b.replace(b"images/", b"nowhere/")),
        "predict",
        ".tif: no such file; `dvc repro restructure`",
    ),
    "mask gone": (
        bytes_of("splits", lambda b: b.replace(b"masks/", b"nowhere/")),
        "evaluate",
        ".tif: no such file; `dvc repro restructure`",
    ),
    "intensities not a table": (
        bytes_of("intensities", lambda _: b""),
        "train",
        "intensities.csv: no table of intensities",
    ),
    "intensities without a patient": (
        bytes_of("intensities", lambda b: b[: b.index(b"\n") + 1]),
        "train",
        "has 0 rows, not one for each channel\n",
    ),
    "intensities that are no numbers": (
        bytes_of("intensities", lambda b: b.replace(b"1", b"x")),
        "predict",
        "intensities.csv: no table of intensities",
    ),
    "missing map": (no_map, "evaluate", "no probability map that can be read"),
    "map cut off": (bytes_of("one_map", lambda b: b[:40]), "evaluate", "no probability map"),
    "map in color": (
        lambda f: pixels(SIZE, SIZE, 3).save(f.one_map),
        "evaluate",
        "expected 1 channel of uint8, found mode RGB",
    ),
    "map of another size": (
        lambda f: pixels(9, 9).save(f.one_map),
        "evaluate",
        "(9, 9) pixels for a mask of",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_spoiled_file_of_a_later_stage_is_refused_by_name(
    run_stage: RunStage, data: Data, tmp_path: Path, name: str
) -> None:
    spoil, stage, message = SPOILED[name]
    files = Files(data, tmp_path)
    spoil(files)
    outcome = files.run(run_stage, stage)
    assert outcome.code == 1, outcome.error
    assert message in outcome.error
    assert "dvc repro" in outcome.error or "tu-<name>" in outcome.error
    assert "Traceback" not in outcome.error
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*"))
