"""Copy or convert a data set into one folder, and write a table of voxel sizes.

    python src/acquire.py data/raw data/geometry.csv

`acquire.dataset` is `lgg` (the public Kaggle data set), `phantom` (synthetic), or the path of a
folder or zip. The folder or zip contains TIFF slices, or NIfTI files laid out as in BraTS, BIDS or
nnU-Net, which are converted to slices. For `lgg`, set the environment variable LGG_ARCHIVE to use a
local folder or zip. Otherwise the stage uses DVC's copy, or downloads from Kaggle if DVC has none.
"""

import os
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from pipeline import dvc_copy
from pipeline.command import run
from pipeline.outputs import replacing
from pipeline.params import Seed
from pipeline.refusals import Refusal, quantity, refuse
from scans import lgg
from scans.geometry import Geometry, read_geometry, write_geometry
from scans.params import AcquireParams, PhantomParams

LOCAL_COPY = "LGG_ARCHIVE"
ANNOUNCEMENT = (
    "Downloading the LGG MRI Segmentation data set (CC BY-NC-SA 4.0) from Kaggle: about 0.7 GB, "
    "some minutes. It unpacks to 2 GB in kagglehub's cache ({cache}), which you may delete "
    "afterwards. The copy here and DVC's cache take 2.9 GB."
)
DOWNLOAD_HELP = f"""You can get the data in three ways:
  1. Connect to the network and run this again; a partial download is continued. Behind a
     proxy, set HTTPS_PROXY.
  2. Download the zip from kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation in a browser. Set
     {LOCAL_COPY} to the path of the zip or of the unpacked folder.
  3. Run `dvc pull` if your team shares the data in a DVC remote. If it finds nothing, nobody has
     pushed the data yet (docs/team.md)."""


def download() -> Path:
    """Return the folder of kagglehub's download; download only if it is not cached."""
    import kagglehub  # imported late: slow, and rarely needed
    from kagglehub.exceptions import DataCorruptionError

    cache = os.environ.get("KAGGLEHUB_CACHE", "~/.cache/kagglehub")
    print(ANNOUNCEMENT.format(cache=cache), flush=True)
    try:
        return Path(kagglehub.dataset_download(lgg.KAGGLE_HANDLE))
    except (OSError, ValueError, DataCorruptionError, zipfile.BadZipFile) as error:
        reason = " ".join(str(error).split())
        raise Refusal(f"the download failed: {reason}\n{DOWNLOAD_HELP}") from None


def acquire_lgg(raw: Path, target: Path) -> None:
    """Write the published data set to `target`: LGG_ARCHIVE, else DVC's copy, else a download."""
    from scans.sources import copy_dataset  # imported late: SciPy and pandas

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
            "Delete it and get it again. To use another data set, set acquire.dataset to its path.",
        )


def acquire_from_path(
    raw: Path, target: Path, geometry: Path, acquire: AcquireParams
) -> list[Geometry]:
    """Write the data set in the folder or zip that acquire.dataset names; return its geometries.

    If the path does not exist on this machine, use DVC's copy if there is one.
    """
    from scans.sources import import_dataset  # imported late: SciPy and pandas

    source = Path(acquire.dataset).expanduser()
    recorded = {f"acquire.{name}": value for name, value in acquire.model_dump().items()}
    if not source.exists() and dvc_copy.restore(raw, target, stage="acquire", params=recorded):
        table = target.parent / geometry.name
        dvc_copy.restore(geometry, table, stage="acquire", params=recorded)
        return list(read_geometry(table).values())
    return import_dataset(source, target, acquire)


def main(
    raw: Path, geometry: Path, *, seed: Seed, acquire: AcquireParams, phantom: PhantomParams
) -> None:
    rows: list[Geometry] = []
    if acquire.dataset in ("lgg", "phantom"):
        acquire.check_nifti_params(acquire.dataset)
    with replacing(raw, geometry) as [partial, table]:
        if acquire.dataset == "phantom":
            from scans.phantom import write_phantom  # imported late: SciPy and pandas

            write_phantom(
                partial, seed=seed, patients=phantom.patients, image_size=phantom.image_size
            )
        elif acquire.dataset == "lgg":
            acquire_lgg(raw, partial)
        else:
            rows = acquire_from_path(raw, partial, geometry, acquire)
        write_geometry(table, rows)
    n_patients = sum(path.is_dir() for path in raw.iterdir())
    print(
        f"{raw}: {quantity(n_patients, 'patient')}; {geometry}: voxel sizes of {len(rows)} of them"
    )


if __name__ == "__main__":
    run(main)
