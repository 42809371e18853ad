"""Bring the patient folders and data.csv into one place.

    python src/acquire.py data/raw

`acquire.dataset` is `lgg` (the public Kaggle data set), `phantom` (synthetic), or the path of a
folder or zip in the same layout. For `lgg` the environment variable LGG_ARCHIVE, when set, names a
local folder or zip; otherwise the copy that DVC holds serves, and in its absence Kaggle.
"""

import os
import shutil
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import NoReturn

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

from pipeline import dvc_copy
from pipeline.command import run
from pipeline.outputs import replacing
from pipeline.params import Seed
from pipeline.refusals import Refusal, refuse
from scans import lgg
from scans.layout import CLINICAL_FILE, Member, hidden_part, layout_members
from scans.params import AcquireParams, PhantomParams

LOCAL_COPY = "LGG_ARCHIVE"
LARGEST_FILE = 2**28  # bytes; a slice of 4096 x 4096 pixels has 50 MB
LAYOUT = f"Expected <patient>/<patient>_<number>.tif, their _mask.tif, and {CLINICAL_FILE}."
ANNOUNCEMENT = (
    "Downloading the LGG MRI Segmentation data set (CC BY-NC-SA 4.0) from Kaggle: about 0.7 GB, "
    "some minutes. It unpacks to 2 GB in kagglehub's cache ({cache}), which may be deleted "
    "afterwards, and takes 2.9 GB here, with DVC's cache."
)
WAYS_OUT = f"""Three ways out:
  1. connect to the network (a proxy: HTTPS_PROXY) and repeat; what was downloaded is kept;
  2. download the zip from kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation in a browser and set
     {LOCAL_COPY} to it, or to the folder it unpacks to;
  3. `dvc pull`, where your team shares the data by a DVC remote; where that finds nothing, nobody
     has pushed it there yet (docs/team.md)."""


def folder_members(folder: Path) -> dict[PurePosixPath, Path]:
    """Return the files below a folder by relative path; refuse what is no plain file."""

    def unreadable(error: OSError) -> NoReturn:
        raise error  # os.walk alone would pass over the folder

    members, problems = {}, []
    for parent, folders, files in os.walk(folder, onerror=unreadable):
        below = PurePosixPath(Path(parent).relative_to(folder).as_posix())
        if not folders and not files and Path(parent) != folder and hidden_part(below) is None:
            problems.append(f"empty folder: {parent}")
        for name in sorted([*files, *(f for f in folders if (Path(parent) / f).is_symlink())]):
            path = Path(parent) / name
            if hidden_part(below / name) is None and (path.is_symlink() or not path.is_file()):
                problems.append(f"neither a file nor a folder: {path}")
            members[below / name] = path
    if problems:
        refuse(problems, "Put the files themselves in their place, or take away what is none.")
    return members


def zip_members(archive: zipfile.ZipFile) -> dict[PurePosixPath, zipfile.ZipInfo]:
    """Return the files of a zip by path; refuse paths out of it, encryption and repeats.

    A backslash separates folders too: so it is in zips that Windows PowerShell has made.
    """
    names = {info: info.filename.replace("\\", "/") for info in archive.infolist()}
    paths = {info: PurePosixPath(name) for info, name in names.items() if name[-1:] != "/"}
    repeats = Counter(paths.values())
    problems = [f"twice in the zip: {path}" for path, count in repeats.items() if count > 1]
    for info, path in paths.items():
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
            problems.append(f"path out of the zip: {info.filename}")
        elif info.flag_bits & 0x1 and hidden_part(path) is None:
            problems.append(f"encrypted: {info.filename}")
    if problems:
        refuse(problems, f"Make {archive.filename} anew.")
    return {path: info for info, path in paths.items()}


def copy_members(
    members: Mapping[PurePosixPath, Member], target: Path, archive: zipfile.ZipFile | None = None
) -> None:
    """Copy the members of a folder or zip to their places in `target`."""
    for place, member in tqdm(sorted(members.items()), desc="copy", unit="file", disable=None):
        path = target / place
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(member, Path):
            shutil.copyfile(member, path)
        else:
            assert archive is not None
            with archive.open(member) as packed, path.open("wb") as file:
                shutil.copyfileobj(packed, file)


def check_layout(members: Iterable[PurePosixPath], source: Path) -> None:
    """Refuse a source without patients or without data.csv."""
    places = set(members)
    if not places:
        raise Refusal(f"{source}: no folder with TIFF files in it. {LAYOUT}")
    if PurePosixPath(CLINICAL_FILE) not in places:
        raise Refusal(
            f"{source}: no {CLINICAL_FILE} beside the patients' folders. {LAYOUT} Without clinical "
            "data, a table with the one column `Patient` will do."
        )


def check_sizes(sizes: Mapping[PurePosixPath, int], source: Path, target: Path) -> None:
    """Refuse files too large for slices, and a source larger than the free disk: zip bombs."""
    problems = [
        f"{source}: {place} of {size / 1e9:.1f} GB, too large for a slice"
        for place, size in sorted(sizes.items())
        if size > LARGEST_FILE
    ]
    if problems:
        refuse(problems, "Check where it comes from.")
    size, free = sum(sizes.values()), shutil.disk_usage(target.parent).free
    if size > free:
        raise Refusal(
            f"{source} holds {size / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; "
            "free some, or check where the source comes from"
        )


def copy_dataset(source: Path, target: Path, name: str) -> None:
    """Copy the data set in a folder or zip to `target`; `name` says who asked for it."""
    if source.is_dir():
        members = layout_members(folder_members(source))
        check_layout(members, source)
        sizes = {place: path.stat().st_size for place, path in members.items()}
        check_sizes(sizes, source, target)
        copy_members(members, target)
        return
    if not source.is_file():
        raise Refusal(
            f"{name} is {str(source)!r}, which is neither a folder nor a zip file; correct the path"
        )
    try:
        with zipfile.ZipFile(source) as archive:
            packed = layout_members(zip_members(archive))
            check_layout(packed, source)
            sizes = {place: info.file_size for place, info in packed.items()}
            check_sizes(sizes, source, target)
            copy_members(packed, target, archive)
    except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error, LZMAError) as error:
        raise Refusal(
            f"{name} is {str(source)!r}, no sound zip file: {error}; fetch or make it anew"
        ) from None


def download() -> Path:
    """Return the folder that kagglehub has downloaded to, or had before."""
    import kagglehub  # imported here: slow, and seldom needed
    from kagglehub.exceptions import DataCorruptionError

    cache = os.environ.get("KAGGLEHUB_CACHE", "~/.cache/kagglehub")
    print(ANNOUNCEMENT.format(cache=cache), flush=True)
    try:
        return Path(kagglehub.dataset_download(lgg.KAGGLE_HANDLE))
    except (OSError, ValueError, DataCorruptionError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise Refusal(f"the download failed: {reason}\n{WAYS_OUT}") from None


def acquire_lgg(raw: Path, target: Path) -> None:
    """Write the published data set to `target`, from the nearest place that has it."""
    local_copy = os.environ.get(LOCAL_COPY)
    if local_copy:
        source = f"{LOCAL_COPY} ({local_copy})"
        copy_dataset(Path(local_copy).expanduser(), target, LOCAL_COPY)
    elif dvc_copy.restore(raw, target, stage="acquire", params={"acquire.dataset": "lgg"}):
        source = "DVC's copy"
    else:
        folder = download()
        source = f"the download in {folder}"
        copy_dataset(folder, target, "the download")
    problems = lgg.differences(target)
    if problems:
        refuse(
            [f"{source} is not the published data set: {problem}" for problem in problems],
            "Delete it and fetch it again. For another data set set acquire.dataset to its path.",
        )


def main(raw: Path, *, seed: Seed, acquire: AcquireParams, phantom: PhantomParams) -> None:
    dataset = acquire.dataset
    recorded = {"acquire.dataset": dataset}
    with replacing(raw) as [partial]:
        if dataset == "phantom":
            # SciPy and pandas: no other data set needs them
            from scans.phantom import write_phantom

            write_phantom(
                partial, seed=seed, patients=phantom.patients, image_size=phantom.image_size
            )
        elif dataset == "lgg":
            acquire_lgg(raw, partial)
        elif (source := Path(dataset).expanduser()).exists() or not dvc_copy.restore(
            raw, partial, stage="acquire", params=recorded
        ):
            copy_dataset(source, partial, "acquire.dataset")
    n_patients = sum(path.is_dir() for path in raw.iterdir())
    print(f"{n_patients} patients in {raw}")


if __name__ == "__main__":
    run(main)
