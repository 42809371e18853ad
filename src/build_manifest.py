"""Write one row for every slice, with its label, and one row for every patient.

    python src/build_manifest.py data/slices/images data/slices/masks data/raw/data.csv \
        data/manifest.csv data/patients.csv

A patient's folder is one exam. The column `subject` of data.csv identifies the person. If it is
missing, the person is the folder's name without a date or session at its end
(`scans.names.person`).
"""

import hashlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from pipeline.command import run
from pipeline.outputs import replacing
from pipeline.parallel import in_parallel
from pipeline.refusals import print_list, quantity, refuse
from scans.clinical import read_clinical, rows_of_patients
from scans.cohort import MISSING, missing_columns
from scans.layout import CLINICAL_FILE
from scans.names import SliceName, institution, slice_path, sorted_slices
from scans.params import AcquireParams
from scans.sequences import MAIN
from scans.tiff import read_image, read_mask

IS_MAIN = "_is_main"  # suffix of the columns that flag a sequence as equal to the main one


def slice_row(
    name: SliceName, images: Path, masks: Path, sequences: Sequence[str]
) -> dict[str, object]:
    """Return a slice's row, with a flag for each other sequence: whether it equals the main one.

    `sequences` has the sequence of each channel. `digest` is the hash of the scan's pixels, ""
    for a blank scan.
    """
    image_path = slice_path(images, name.slice_id)
    mask_path = slice_path(masks, name.slice_id)
    image, mask = read_image(image_path), read_mask(mask_path)
    return {
        "slice_id": name.slice_id,
        "patient_id": name.patient_id,
        "institution": institution(name.patient_id),
        "slice_number": name.number,
        "image": image_path.as_posix(),
        "mask": mask_path.as_posix(),
        "abnormal": int(mask.any()),
        "tumor_area": int(mask.sum()),
        **{
            f"{name}{IS_MAIN}": np.array_equal(channel, image[..., MAIN])
            for name, channel in zip(sequences, np.moveaxis(image, -1, 0), strict=True)
            if name != sequences[MAIN]
        },
        "digest": hashlib.sha256(image.tobytes()).hexdigest() if np.ptp(image) else "",
    }


def check_scans(slices: pd.DataFrame, persons: pd.Series) -> None:
    """Raise an error if two persons have scans with the same pixels.

    `persons` is indexed by `patient_id`.
    """
    owners = slices["patient_id"].map(persons)
    identical = slices[slices["digest"] != ""].groupby("digest")["image"]
    problems = sorted(
        "two persons have the same scan: " + ", ".join(images)
        for _, images in identical
        if len(set(owners[images.index])) > 1
    )
    if problems:
        refuse(
            problems,
            f"If they are one person, give both the same `subject` in {CLINICAL_FILE}. Otherwise "
            "remove one of them. Then run `dvc repro -f acquire`.",
        )


def patients_table(slices: pd.DataFrame, clinical: pd.DataFrame) -> pd.DataFrame:
    """Return one row per patient, sorted by id: counts, missing sequences, clinical columns.

    `clinical` is indexed by `patient_id`. The data set fills the channel of a missing sequence with
    the main sequence, so a sequence is missing if its channel equals the main one in all slices.
    """
    grouped = slices.groupby("patient_id", sort=True)
    patients = grouped.agg(
        institution=("institution", "first"),
        n_slices=("slice_id", "size"),
        n_abnormal=("abnormal", "sum"),
        tumor_volume=("tumor_area", "sum"),
        **{
            f"{MISSING}{name.removesuffix(IS_MAIN)}": (name, "all")
            for name in slices.columns.astype(str)
            if name.endswith(IS_MAIN)
        },
    ).reset_index()
    patients = patients.astype(dict.fromkeys(missing_columns(patients), int))
    patients.insert(1, "case_id", patients["patient_id"].map(clinical["case_id"]))
    codes = clinical.drop(columns=["row", "case_id", "subject", "institution"], errors="ignore")
    prefixed = {name: f"clinical_{name}" for name in (*patients, *missing_columns(codes))}
    return patients.join(codes.rename(columns=prefixed), on="patient_id")


def print_mismatches(clinical: Path, table: pd.DataFrame, matched: pd.DataFrame) -> None:
    """Print unmatched rows of data.csv, unmatched folders, and persons with several folders."""
    unused = table.loc[~table.index.isin(matched["row"]), "case_id"].tolist()
    print_list(f"rows of {clinical} that match no patient folder ({len(unused)})", unused)
    unmatched = matched.index[matched["row"] < 0].tolist()
    print_list(f"patients without a row in {clinical} ({len(unmatched)})", unmatched)
    folders = matched.groupby("case_id").groups
    several = [
        f"{person}: {', '.join(names)}" for person, names in folders.items() if len(names) > 1
    ]
    print_list(f"persons with several folders, which stay in one split ({len(several)})", several)


def main(
    images: Path,
    masks: Path,
    clinical: Path,
    manifest: Path,
    patients: Path,
    *,
    acquire: AcquireParams,
) -> None:
    names = sorted_slices(images)
    label = partial(slice_row, images=images, masks=masks, sequences=acquire.channels)
    rows = in_parallel(label, names, "label", unit="slice")
    slices = pd.DataFrame(rows)
    table = read_clinical(clinical)
    matched = rows_of_patients(sorted(set(slices["patient_id"])), table)
    check_scans(slices, matched["case_id"])
    if "institution" in matched:
        institutions = slices["patient_id"].map(matched["institution"].replace("", pd.NA))
        slices["institution"] = institutions.fillna(slices["institution"])
    cohort = patients_table(slices, matched)
    with replacing(manifest, patients) as [manifest_partial, patients_partial]:
        flags = slices.columns[slices.columns.str.endswith(IS_MAIN)]
        slices.drop(columns=[*flags, "digest"]).to_csv(manifest_partial, index=False)
        cohort.to_csv(patients_partial, index=False)
    print(
        f"{quantity(len(slices), 'slice')} of {quantity(len(matched), 'patient')}, "
        f"{slices['abnormal'].sum():,} abnormal"
    )
    print_mismatches(clinical, table, matched)


if __name__ == "__main__":
    run(main)
