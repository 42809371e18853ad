"""Damaged and hostile input gives one error with the file and a hint, and no output.

Each row of DAMAGED_SOURCES damages a data set, which then goes through the data stages as in `dvc
repro`. Each row of DAMAGED_INPUTS damages an input of a later stage.
"""

import io
import os
import re
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
Damage = Callable[
    [Path], Path | None
]  # damages a folder of patients; returns the source if it is not that folder


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of four phantom patients; do not change it."""
    folder = tmp_path_factory.mktemp("patients") / "raw"
    write_phantom(folder, seed=3, patients=4, image_size=SIZE)
    return folder


def encode_tiff(image: np.ndarray) -> bytes:
    """Return a TIFF from OpenCV, which can write 16 bits per channel."""
    return bytes(cv2.imencode(".tif", image)[1])


def pixels(*shape: int, value: int = 0, dtype: type = np.uint8) -> Image.Image:
    return Image.fromarray(np.full(shape, value, dtype))


def saved(place: str, image: Image.Image, **options: Any) -> Damage:
    """Replace a file by an image."""

    def damage(folder: Path) -> None:
        image.save(folder / place, **({"format": "TIFF"} | options))

    return damage


def changed(place: str, change: Callable[[bytes], bytes]) -> Damage:
    """Change the bytes of a file; create it if it does not exist."""

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


def named_pipe(folder: Path) -> None:
    os.mkfifo(folder / f"{P1}/{P1}_99.tif")


def empty_folder(folder: Path) -> None:
    (folder / "PHANTOM_P9_0099_20000101").mkdir()


def patient_copied(folder: Path) -> None:
    """Copy a patient under another name."""
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


def no_tumor(folder: Path) -> None:
    for mask in folder.glob("*/*_mask.tif"):
        pixels(SIZE, SIZE).save(mask)


def only_patients(n_patients: int) -> Damage:
    def damage(folder: Path) -> None:
        for path in sorted(folder.glob("PHANTOM*"))[n_patients:]:
            shutil.rmtree(path)

    return damage


def missing_source(folder: Path) -> Path:
    return folder / "nowhere"


def huge_header(content: bytes, size: int = 60_000) -> bytes:
    """Return a TIFF whose header claims `size` pixels along each side."""
    start = struct.unpack_from("<I", content, 4)[0]
    changed = bytearray(content)
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", content, start)[0], 12):
        if struct.unpack_from("<H", content, entry)[0] in (256, 257):
            struct.pack_into("<HIHH", changed, entry + 2, 3, 1, size, 0)
    return bytes(changed)


def zipped(change: Callable[[bytes], bytes] = bytes, extra: tuple[str, ...] = ()) -> Damage:
    """Zip the folder with extra entries, then change the bytes of the zip."""

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
    """Return the zip with the encryption flag set in each entry."""
    content = bytearray(archive)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        position = content.find(signature)
        while position >= 0:
            content[position + offset] |= 1
            position = content.find(signature, position + 4)
    return bytes(content)


def first_file_of_zip(archive: bytes) -> tuple[int, int]:
    """Return the offsets of the local and the central header of the zip's first file."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        info = next(info for info in opened.infolist() if not info.is_dir())
    name = info.filename.encode()
    return info.header_offset, archive.rindex(name, 0, archive.rindex(b"PK\x05\x06")) - 46


def corrupted(archive: bytes) -> bytes:
    """Return the zip with some data bytes of its first file overwritten."""
    local, _ = first_file_of_zip(archive)
    name_length = struct.unpack_from("<H", archive, local + 26)[0]
    start = local + 30 + name_length
    return archive[:start] + b"\xff" * 10 + archive[start + 10 :]


def claiming_size(n_bytes: int) -> Callable[[bytes], bytes]:
    """Change a zip so that its first file claims to have `n_bytes` when unpacked."""

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


TWO_PAGES = {"save_all": True, "append_images": [pixels(SIZE, SIZE)]}
EXTRA = f"{P1}/{P1}_99.tif"

# The damage to the source, the stage that stops, and what its message must contain.
DAMAGED_SOURCES: dict[str, tuple[Damage, str, *tuple[str, ...]]] = {
    "no such source": (missing_source, "acquire", "acquire.dataset", "/nowhere'"),
    "empty folder": (removed("*"), "acquire", "{source}: ", "0 files"),
    "no patient": (removed("PHANTOM*"), "acquire", "{source}: ", "1 files (.csv)"),
    "two folders of patients": (two_sites, "acquire", ": siteA\n", ": siteB\n"),
    "link outside": (linked(EXTRA, "/etc/hostname"), "acquire", f"{{source}}/{EXTRA}\n"),
    "link in a loop": (linked(f"{P1}/loop", ".."), "acquire", f"{{source}}/{P1}/loop\n"),
    "broken link": (linked(EXTRA, "nowhere.tif"), "acquire", f"{{source}}/{EXTRA}\n"),
    "named pipe": (named_pipe, "acquire", f"{{source}}/{EXTRA}\n"),
    "zip with ..": (zipped(extra=("../evil.tif",)), "acquire", ": ../evil.tif\n", "source.zip"),
    "zip with an absolute path": (zipped(extra=("/evil.tif",)), "acquire", ": /evil.tif\n"),
    "zip with ..\\": (zipped(extra=("..\\evil.tif",)), "acquire", ": ..\\evil.tif\n"),
    "zip with a drive": (zipped(extra=("C:\\evil.tif",)), "acquire", ": C:\\evil.tif\n"),
    "zip with a duplicate": (zipped(extra=("./data.csv",)), "acquire", ": data.csv\n"),
    "encrypted zip": (zipped(encrypted), "acquire", "encrypted: ", "source.zip"),
    "truncated zip": (zipped(lambda content: content[:-100]), "acquire", "source.zip'"),
    "zip with a corrupt file": (zipped(corrupted), "acquire", "source.zip'"),
    "empty zip file": (zipped(lambda _: b""), "acquire", "source.zip'"),
    "zip without files": (
        zipped(lambda _: b"PK\x05\x06" + bytes(18)),
        "acquire",
        "source.zip: ",
        "0 files",
    ),
    "zip with an unknown compression": (zipped(unknown_compression), "acquire", "source.zip'"),
    "zip bomb": (
        zipped(claiming_size(0xFFFFFFF0)),
        "acquire",
        f"source.zip: {P1}/{P1}_1.tif",
        "4.3 GB",
    ),
    "zip that claims too little": (zipped(claiming_size(10)), "acquire", "source.zip'"),
    "missing mask": (removed(MASK), "restructure", f"{{raw}}/{SCAN}"),
    "missing scan": (removed(SCAN), "restructure", f"{{raw}}/{MASK}"),
    "foreign file": (
        written(f"{P1}/notes.txt", b"left here"),
        "restructure",
        f"{{raw}}/{P1}/notes.txt",
    ),
    "slice without number": (
        copied(SCAN, f"{P1}/{P1}_three.tif"),
        "restructure",
        f"{{raw}}/{P1}/{P1}_three.tif",
    ),
    "folder in a patient's folder": (
        copied(SCAN, f"{P1}/more/{P1}_3.tif"),
        "restructure",
        f"{{raw}}/{P1}/more",
    ),
    "slice of another patient": (
        copied(f"{P2}/{P2}_1.tif", f"{P1}/{P2}_1.tif"),
        "restructure",
        f"{{raw}}/{P1}/{P2}_1.tif",
    ),
    "duplicate slice number": (
        copied(SCAN, f"{P1}/{P1}_03.tif"),
        "restructure",
        f"{{raw}}/{P1}/{P1}_03.tif",
        f"{{raw}}/{SCAN}",
    ),
    "suffix in two spellings": (
        copied(SCAN, f"{P1}/{P1}_3.TIFF"),
        "restructure",
        f"{{raw}}/{P1}/{P1}_3.TIFF",
        f"{{raw}}/{SCAN}",
    ),
    "same scan under two names": (
        patient_copied,
        "build_manifest",
        f"{{images}}/{P1}_1.tif",
        "{images}/clinic_7_1.tif",
    ),
    "truncated file": (changed(SCAN, lambda b: b[:999]), "restructure", f"{SCAN}: damaged"),
    "half a file": (
        changed(SCAN, lambda b: b[: len(b) // 2]),
        "restructure",
        f"{SCAN}: damaged",
    ),
    "empty file": (written(SCAN, b""), "restructure", f"{SCAN}: not "),
    "text": (written(SCAN, b"no image"), "restructure", f"{SCAN}: not "),
    "pickle": (
        written(SCAN, b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR."),
        "restructure",
        f"{SCAN}: not ",
    ),
    "PNG": (
        saved(SCAN, pixels(SIZE, SIZE, 3), format="PNG"),
        "restructure",
        f"{SCAN}: not ",
    ),
    "huge size in header": (changed(SCAN, huge_header), "restructure", f"{SCAN}: damaged"),
    "large size in header": (
        changed(SCAN, lambda b: huge_header(b, 13_000)),
        "restructure",
        f"{SCAN}: 13000 × 13000 pixels",
        "4096",
    ),
    "scan with 3 channels of 16 bits": (
        written(SCAN, encode_tiff(np.full((SIZE, SIZE, 3), 700, np.uint16))),
        "restructure",
        f"{SCAN}: ",
        "mode RGB, pages: 1, channels: 3, ",
        "(16, 16, 16)",
    ),
    "gray scan": (saved(SCAN, pixels(SIZE, SIZE)), "restructure", f"{SCAN}: ", "mode L,"),
    "scan of 16 bits": (
        saved(SCAN, pixels(SIZE, SIZE, dtype=np.uint16)),
        "restructure",
        f"{SCAN}: ",
        "mode I;16,",
    ),
    "scan of floats": (
        saved(SCAN, pixels(SIZE, SIZE, dtype=np.float32)),
        "restructure",
        f"{SCAN}: ",
        "mode F,",
    ),
    "scan with 4 channels": (
        saved(SCAN, pixels(SIZE, SIZE, 4)),
        "restructure",
        f"{SCAN}: ",
        "mode RGBA,",
    ),
    "scan of another size": (
        saved(SCAN, pixels(SIZE - 1, SIZE, 3)),
        "restructure",
        f"{MASK}: ",
        f"{SIZE}x{SIZE}",
        f"{SIZE - 1}x{SIZE}",
    ),
    "mask of another size": (
        saved(MASK, pixels(SIZE, SIZE + 1)),
        "restructure",
        f"{MASK}: ",
        f"{SIZE}x{SIZE + 1}",
        f"{SIZE}x{SIZE}",
    ),
    "mask in color": (
        saved(MASK, pixels(SIZE, SIZE, 3)),
        "restructure",
        f"{MASK}: ",
        "mode RGB,",
    ),
    "mask of 1 bit": (
        saved(MASK, pixels(SIZE, SIZE).convert("1")),
        "restructure",
        f"{MASK}: ",
        "mode 1,",
    ),
    "mask of 0 and 1": (
        saved(MASK, pixels(SIZE, SIZE, value=1)),
        "restructure",
        f"{MASK}: ",
        "0 and 255",
        "[1]",
    ),
    "mask of two pages": (
        saved(MASK, pixels(SIZE, SIZE), **TWO_PAGES),
        "restructure",
        f"{MASK}: ",
        "mode L, pages: 2",
    ),
    "patient without slices": (empty_folder, "acquire", "{source}/PHANTOM_P9_0099_20000101\n"),
    "empty data.csv": (written("data.csv", b""), "build_manifest", "raw/data.csv: "),
    "data.csv with ragged rows": (
        written("data.csv", b"Patient\nA,1\nB,1,2,3\n"),
        "build_manifest",
        "raw/data.csv: ",
    ),
    "data.csv that is not text": (
        written("data.csv", b"Patient,x\nA\xff\xfe,1\n"),
        "build_manifest",
        "raw/data.csv: ",
    ),
    "data.csv with an open quote": (
        written("data.csv", b'Patient,x\n"A,1\n'),
        "build_manifest",
        "raw/data.csv: ",
    ),
    "data.csv without Patient": (
        written("data.csv", b"Name\nA\n"),
        "build_manifest",
        "raw/data.csv: ",
        "`Patient`",
        "['Name']",
    ),
    "data.csv with a duplicate patient": (
        written("data.csv", b"Patient\nA\nA\n"),
        "build_manifest",
        "raw/data.csv: ",
        "['A']",
    ),
    "data.csv with a duplicate column": (
        written("data.csv", b"Patient,case_id\nA,1\n"),
        "build_manifest",
        "raw/data.csv: ",
        "['case_id']",
    ),
    "one patient": (only_patients(1), "split", "split.folds", " 1 patient"),
    "three patients": (only_patients(3), "split", "split.folds", " 3 patients"),
    "no tumor": (no_tumor, "split", "in train", "in test"),
}

# Every message has a hint: a request, or what to change or run.
HINT = re.compile(
    r"\b(?:Add|Check|Choose|Correct|Create|Download|Expected|Keep|Put|Remove|Rename|Replace|Set)\b"
    r"|docs/own-data\.md|split\.folds|dvc repro"
)
DATA_STAGES = ("acquire", "restructure", "build_manifest", "measure_tissue", "split")


def run_data_stages(run_stage: RunStage, source: Path, folder: Path) -> tuple[str, Outcome]:
    """Run the data stages on a source until one fails; return the last one and its outcome."""
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


@pytest.mark.parametrize("name", DAMAGED_SOURCES)
def test_a_damaged_source_stops_a_stage_with_an_error_and_no_output(
    run_stage: RunStage, patients: Path, tmp_path: Path, name: str
) -> None:
    damage, stage, *facts = DAMAGED_SOURCES[name]
    folder = Path(shutil.copytree(patients, tmp_path / "source"))
    source, out = damage(folder) or folder, tmp_path / "data"
    stopped, outcome = run_data_stages(run_stage, source, out)
    assert (stopped, outcome.code) == (stage, 1), outcome.error
    places = {"source": folder, "raw": out / "raw", "images": out / "images"}
    for fact in facts:
        assert fact.format_map(places) in outcome.error
    assert "error: " in outcome.error
    assert "Traceback" not in outcome.error
    assert HINT.search(outcome.error)
    outputs = {"acquire": {"geometry.csv", "raw"}, "restructure": {"images", "masks"}}
    outputs |= {"build_manifest": {"manifest.csv", "patients.csv"}, "split": {"splits.csv"}}
    outputs |= {"measure_tissue": {"intensities.csv"}}
    before = DATA_STAGES[: DATA_STAGES.index(stage)]
    found = {path.name for path in out.iterdir()} if out.exists() else set()
    assert found == {output for earlier in before for output in outputs[earlier]}
    assert {path.name for path in tmp_path.iterdir()} <= {
        "data",
        "findings.csv",
        "source",
        "source.zip",
        "params.yaml",
    }


def test_an_undamaged_source_passes(run_stage: RunStage, patients: Path, tmp_path: Path) -> None:
    assert len(DAMAGED_SOURCES) + len(DAMAGED_INPUTS) >= 40
    assert run_data_stages(run_stage, patients, tmp_path / "folder") == ("split", Outcome(0, ""))
    folder = Path(shutil.copytree(patients, tmp_path / "source"))
    source = zipped()(folder)
    assert source is not None
    assert run_data_stages(run_stage, source, tmp_path / "zip") == ("split", Outcome(0, ""))
    windows = with_backslashes(source)
    assert run_data_stages(run_stage, windows, tmp_path / "win") == ("split", Outcome(0, ""))
    tables = [(tmp_path / name / "splits.csv").read_bytes() for name in ("folder", "zip", "win")]
    assert tables[0].replace(b"/folder/", b"/zip/") == tables[1]
    assert tables[1].replace(b"/zip/", b"/win/") == tables[2]


def with_backslashes(source: Path) -> Path:
    """Return a copy of a zip as Windows PowerShell writes it, with backslashes in paths."""
    copy = source.with_name("windows.zip")
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(copy, "w") as written:
        for info in archive.infolist():
            content = archive.read(info)
            info.filename = info.filename.replace("/", "\\")
            written.writestr(info, content)
    return copy


class StageInputs:
    """Inputs of the later stages: a network with random weights, and probability maps of 0."""

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


def with_header(name: str, header: str) -> Callable[[StageInputs], None]:
    """Replace the header of a safetensors file."""

    def damage(inputs: StageInputs) -> None:
        path: Path = getattr(inputs, name)
        save_file(load_file(path), path, metadata={"network": header})

    return damage


def changed_bytes(name: str, change: Callable[[bytes], bytes]) -> Callable[[StageInputs], None]:
    def damage(inputs: StageInputs) -> None:
        path: Path = getattr(inputs, name)
        path.write_bytes(change(path.read_bytes()))

    return damage


def other_encoder(inputs: StageInputs) -> None:
    save_tensors(build_encoder("resnet18").state_dict(), Encoder("resnet18"), inputs.encoder)


def pickled(inputs: StageInputs) -> None:
    torch.save(build_encoder("mobilenet_v2").state_dict(), inputs.encoder)


def not_finite(inputs: StageInputs) -> None:
    tensors = load_file(inputs.encoder)
    tensors["features.0.0.weight"][0] = torch.nan
    save_file(tensors, inputs.encoder)


def model_of_another_encoder(inputs: StageInputs) -> None:
    tensors = load_file(inputs.encoder)
    tensors["features.0.0.weight"] += 1
    save_tensors(tensors, Encoder("mobilenet_v2"), inputs.encoder)


def no_map(inputs: StageInputs) -> None:
    inputs.one_map.unlink()


def model_header(**changes: Any) -> Callable[[StageInputs], None]:
    def damage(inputs: StageInputs) -> None:
        header = Model("mobilenet_v2", file_sha256(inputs.encoder), True, 32, 0, "none")
        save_tensors(load_file(inputs.unet), replace(header, **changes), inputs.unet)

    return damage


ENCODER, MODEL = "encoder.safetensors", "unet.safetensors"
DAMAGED_INPUTS: dict[str, tuple[Callable[[StageInputs], None], str, *tuple[str, ...]]] = {
    "no encoder": (lambda f: f.encoder.unlink(), "train", ENCODER),
    "different encoder": (other_encoder, "train", ENCODER, "encoder.name", "'mobilenet_v2'"),
    "truncated encoder": (changed_bytes("encoder", lambda b: b[:-9]), "train", ENCODER),
    "empty encoder": (changed_bytes("encoder", lambda _: b""), "train", ENCODER),
    "pickled encoder": (pickled, "train", ENCODER),
    "encoder with NaN": (not_finite, "train", ENCODER, "features.0.0"),
    "encoder with a number as mean": (with_header("encoder", '{"mean": 5}'), "train", "header"),
    "encoder with text as std": (
        with_header("encoder", '{"std": ["a", 1, 1]}'),
        "train",
        ENCODER,
        "header",
    ),
    "encoder with std of 0": (
        with_header("encoder", '{"std": [0, 1, 1]}'),
        "train",
        ENCODER,
        "header",
    ),
    "truncated model": (changed_bytes("unet", lambda b: b[:-9]), "predict", MODEL),
    "model with an empty header": (with_header("unet", "{}"), "predict", MODEL, "header"),
    "model with text as size": (model_header(image_size="big"), "predict", MODEL, "header"),
    "model with a negative size": (model_header(image_size=-1), "predict", MODEL, "header"),
    "model with an unknown encoder": (
        model_header(encoder_name="nonsense"),
        "predict",
        "'nonsense'",
    ),
    "model for another encoder": (model_of_another_encoder, "predict", ENCODER, MODEL),
    "empty splits": (changed_bytes("splits", lambda _: b""), "train", "splits.csv: "),
    "splits without a column": (
        changed_bytes("splits", lambda b: b.replace(b"abnormal", b"ill")),
        "train",
        "splits.csv: ",
        "`abnormal`",
    ),
    "splits without the paths of scans": (
        changed_bytes("splits", lambda b: b.replace(b",image,", b",file,")),
        "train",
        "splits.csv: ",
        "`image`",
    ),
    "splits without slice numbers": (
        changed_bytes("splits", lambda b: b.replace(b"slice_number", b"position")),
        "evaluate",
        "splits.csv: ",
        "`slice_number`",
    ),
    "missing scan": (
        changed_bytes("splits", lambda b: b.replace(b"images/", b"nowhere/")),
        "predict",
        ".tif: ",
        "`dvc repro restructure`",
    ),
    "missing mask": (
        changed_bytes("splits", lambda b: b.replace(b"masks/", b"nowhere/")),
        "evaluate",
        ".tif: ",
        "`dvc repro restructure`",
    ),
    "empty intensities": (
        changed_bytes("intensities", lambda _: b""),
        "train",
        "intensities.csv: ",
    ),
    "intensities without a patient": (
        changed_bytes("intensities", lambda b: b[: b.index(b"\n") + 1]),
        "train",
        "intensities.csv: ",
        " 0 rows",
    ),
    "intensities that are not numbers": (
        changed_bytes("intensities", lambda b: b.replace(b"1", b"x")),
        "predict",
        "intensities.csv: ",
    ),
    "missing map": (no_map, "evaluate", ".png: ", "(FileNotFoundError)"),
    "truncated map": (changed_bytes("one_map", lambda b: b[:40]), "evaluate", ".png: "),
    "map in color": (
        lambda f: pixels(SIZE, SIZE, 3).save(f.one_map),
        "evaluate",
        ".png: ",
        "mode RGB",
    ),
    "map of another size": (lambda f: pixels(9, 9).save(f.one_map), "evaluate", "(9, 9)"),
}


@pytest.mark.parametrize("name", DAMAGED_INPUTS)
def test_a_damaged_input_stops_a_later_stage_with_an_error_and_no_output(
    run_stage: RunStage, data: Data, tmp_path: Path, name: str
) -> None:
    damage, stage, *facts = DAMAGED_INPUTS[name]
    inputs = StageInputs(data, tmp_path)
    damage(inputs)
    outcome = inputs.run(run_stage, stage)
    assert outcome.code == 1, outcome.error
    for fact in facts:
        assert fact in outcome.error
    assert "dvc repro" in outcome.error or "tu-<name>" in outcome.error
    assert "Traceback" not in outcome.error
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*"))
