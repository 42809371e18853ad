"""Bring the patient folders and data.csv into one place, and note how large voxels are.

    python src/acquire.py data/raw data/geometry.csv

`acquire.dataset` is `lgg` (the public Kaggle data set), `phantom` (synthetic), or the path of a
folder or zip: slices in TIFF, or NIfTI as in BraTS, BIDS or nnU-Net, which are written as slices.
For `lgg` the environment variable LGG_ARCHIVE, when set, names a local folder or zip; otherwise the
copy that DVC holds is used, and if there is none, Kaggle's.
"""

import os
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

from pipeline import dvc_copy
from pipeline.command import run
from pipeline.outputs import replacing
from pipeline.params import Seed
from pipeline.refusals import Refusal, refuse
from scans import lgg
from scans.geometry import Geometry, read_geometry, write_geometry
from scans.params import AcquireParams, PhantomParams

LOCAL_COPY = "LGG_ARCHIVE"
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
    from scans.sources import copy_dataset  # late, as in acquire_own

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


def acquire_own(raw: Path, target: Path, geometry: Path, acquire: AcquireParams) -> list[Geometry]:
    """Write the data set in the folder or zip that acquire.dataset names.

    Where that is not on this machine, the copy that DVC holds is as good.
    """
    from scans.sources import bring_dataset  # late: SciPy, which no other data set needs

    source = Path(acquire.dataset).expanduser()
    recorded = {f"acquire.{name}": value for name, value in acquire.model_dump().items()}
    if not source.exists() and dvc_copy.restore(raw, target, stage="acquire", params=recorded):
        table = target.parent / geometry.name
        dvc_copy.restore(geometry, table, stage="acquire", params=recorded)
        return list(read_geometry(table).values())
    return bring_dataset(source, target, acquire)


def main(
    raw: Path, geometry: Path, *, seed: Seed, acquire: AcquireParams, phantom: PhantomParams
) -> None:
    rows: list[Geometry] = []
    if acquire.dataset in ("lgg", "phantom"):
        acquire.check_unread(acquire.dataset)
    with replacing(raw, geometry) as [partial, table]:
        if acquire.dataset == "phantom":
            # SciPy and pandas: no other data set needs them
            from scans.phantom import write_phantom

            write_phantom(
                partial, seed=seed, patients=phantom.patients, image_size=phantom.image_size
            )
        elif acquire.dataset == "lgg":
            acquire_lgg(raw, partial)
        else:
            rows = acquire_own(raw, partial, geometry, acquire)
        write_geometry(table, rows)
    n_patients = sum(path.is_dir() for path in raw.iterdir())
    print(f"{n_patients} patients in {raw}; voxel sizes of {len(rows)} in {geometry}")


if __name__ == "__main__":
    run(main)
