"""Label every slice and describe every patient.

    python src/build_manifest.py data/slices/images data/slices/masks data/raw/data.csv \
        data/manifest.csv data/patients.csv

A patient's folder is one exam. Whose it is says the column `subject` of data.csv, and where that is
missing the folder's name without a date or session at its end (`scans.names.person`).
"""

import hashlib
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

from pipeline.command import run
from pipeline.outputs import replacing
from pipeline.parallel import in_parallel
from pipeline.refusals import print_list, refuse
from scans.clinical import read_clinical, rows_of_patients
from scans.cohort import MISSING, missing_columns
from scans.layout import CLINICAL_FILE
from scans.names import SliceName, institution, slice_path, sorted_slices
from scans.params import AcquireParams
from scans.sequences import MAIN
from scans.tiff import read_image, read_mask

IS_MAIN = "_is_main"  # ends the columns that say which sequences equal the main one


def slice_row(
    name: SliceName, images: Path, masks: Path, sequences: Sequence[str]
) -> dict[str, object]:
    """Return the slice's row, with a flag for each sequence that equals the main one everywhere.

    `sequences` are those of the channels; `digest` is that of the scan's pixels, "" of a blank one.
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
    """Refuse scans with the same pixels of two persons, who are given by patient."""
    owners = slices["patient_id"].map(persons)
    alike = slices[slices["digest"] != ""].groupby("digest")["image"]
    problems = sorted(
        "the same scan of two persons: " + ", ".join(images)
        for _, images in alike
        if len(set(owners[images.index])) > 1
    )
    if problems:
        refuse(
            problems,
            f"Is it one person? Give both the same `subject` in {CLINICAL_FILE}. Otherwise take "
            "one away. Then `dvc repro -f acquire`.",
        )


def patients_table(slices: pd.DataFrame, clinical: pd.DataFrame) -> pd.DataFrame:
    """Return one row a patient, sorted by id: counts, missing sequences, clinical columns.

    `clinical` is by patient. A sequence is missing where its channel equals that of the main one in
    all slices, with which the data set fills it.
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
    ours = {name: f"clinical_{name}" for name in (*patients, *missing_columns(codes))}
    return patients.join(codes.rename(columns=ours), on="patient_id")


def print_odd_ones(clinical: Path, table: pd.DataFrame, known: pd.DataFrame) -> None:
    """Print rows of data.csv without a folder, folders without a row, and persons of several."""
    unused = table.loc[~table.index.isin(known["row"]), "case_id"].tolist()
    print_list(f"{len(unused)} rows of {clinical} without a patient's folder", unused)
    lacking = known.index[known["row"] < 0].tolist()
    print_list(f"{len(lacking)} patients without a row in {clinical}", lacking)
    folders = known.groupby("case_id").groups
    several = [f"{name}: {', '.join(own)}" for name, own in folders.items() if len(own) > 1]
    print_list(f"{len(several)} persons with several folders, which stay together", several)


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
    known = rows_of_patients(sorted(set(slices["patient_id"])), table)
    check_scans(slices, known["case_id"])
    if "institution" in known:
        named = slices["patient_id"].map(known["institution"].replace("", pd.NA))
        slices["institution"] = named.fillna(slices["institution"])
    described = patients_table(slices, known)
    with replacing(manifest, patients) as [manifest_partial, patients_partial]:
        helpers = slices.columns[slices.columns.str.endswith(IS_MAIN)]
        slices.drop(columns=[*helpers, "digest"]).to_csv(manifest_partial, index=False)
        described.to_csv(patients_partial, index=False)
    print(f"{len(slices)} slices, {slices['abnormal'].sum()} abnormal, of {len(known)} patients")
    print_odd_ones(clinical, table, known)


if __name__ == "__main__":
    run(main)
