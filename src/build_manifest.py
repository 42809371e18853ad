"""Label every slice and describe every patient.

    python src/build_manifest.py data/slices/images data/slices/masks data/raw/data.csv \
        data/manifest.csv data/patients.csv
"""

import warnings
from functools import partial
from pathlib import Path

import pandas as pd

from pipeline.command import run
from pipeline.outputs import replacing
from pipeline.parallel import in_parallel
from pipeline.refusals import Refusal
from scans.names import SliceName, case_id, institution, slice_path, sorted_slices
from scans.tiff import read_image, read_mask

# The columns of data.csv, by readable names. Values stay the codes of the file, which comes without
# a code book; ages are in years.
CLINICAL_COLUMNS = {
    "Patient": "case_id",
    "RNASeqCluster": "rnaseq_cluster",
    "MethylationCluster": "methylation_cluster",
    "miRNACluster": "mirna_cluster",
    "CNCluster": "copy_number_cluster",
    "RPPACluster": "rppa_cluster",
    "OncosignCluster": "oncosign_cluster",
    "COCCluster": "cluster_of_clusters",
    "histological_type": "histological_type",
    "neoplasm_histologic_grade": "grade",
    "tumor_tissue_site": "tumor_tissue_site",
    "laterality": "laterality",
    "tumor_location": "tumor_location",
    "gender": "gender",
    "age_at_initial_pathologic": "age",
    "race": "race",
    "ethnicity": "ethnicity",
    "death01": "death",
}


def slice_row(name: SliceName, images: Path, masks: Path) -> dict[str, object]:
    """Return the slice's row, with two flags for sequences that equal FLAIR at every pixel."""
    image_path = slice_path(images, name.slice_id)
    mask_path = slice_path(masks, name.slice_id)
    image, mask = read_image(image_path), read_mask(mask_path)
    flair = image[..., 1]
    return {
        "slice_id": name.slice_id,
        "patient_id": name.patient_id,
        "institution": institution(name.patient_id),
        "slice_number": name.number,
        "image": image_path.as_posix(),
        "mask": mask_path.as_posix(),
        "abnormal": int(mask.any()),
        "tumor_area": int(mask.sum()),
        "pre_contrast_is_flair": bool((image[..., 0] == flair).all()),
        "post_contrast_is_flair": bool((image[..., 2] == flair).all()),
    }


def read_clinical(path: Path) -> pd.DataFrame:
    """Return data.csv with readable column names, one row a patient, codes as nullable integers."""
    try:
        with warnings.catch_warnings(action="error"):  # pandas shifts or cuts off ragged rows
            clinical = pd.read_csv(path, index_col=False)
            text = pd.read_csv(path, index_col=False, dtype=str, keep_default_na=False)
    except (ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise Refusal(
            f"{path}: not a table in CSV ({reason}); correct it where it comes from, then "
            "`dvc repro -f acquire`"
        ) from None
    if "Patient" not in clinical:
        raise Refusal(
            f"{path}: no column `Patient`, only {list(clinical)}; "
            "a data set without clinical data needs that column alone"
        )
    clinical["Patient"] = text["Patient"].str.strip()  # a name, also where it is `NA` or `0012`
    clinical = clinical[clinical["Patient"] != ""].rename(columns=CLINICAL_COLUMNS)
    columns = sorted(set(clinical.columns[clinical.columns.duplicated()]))
    if columns:
        raise Refusal(f"{path}: more than one column for {columns}; keep or rename one")
    twice = sorted(set(clinical.loc[clinical["case_id"].duplicated(), "case_id"]))
    if twice:
        raise Refusal(f"{path}: more than one row for {twice}; keep one row a patient")
    return clinical.convert_dtypes()


def patients_table(slices: pd.DataFrame, clinical: pd.DataFrame) -> pd.DataFrame:
    """Return one row a patient, sorted by id: counts, missing sequences, clinical columns.

    A sequence is missing where its channel equals FLAIR in all slices: the data set fills it so.
    """
    grouped = slices.groupby("patient_id", sort=True)
    patients = grouped.agg(
        institution=("institution", "first"),
        n_slices=("slice_id", "size"),
        n_abnormal=("abnormal", "sum"),
        tumor_volume=("tumor_area", "sum"),
        missing_pre_contrast=("pre_contrast_is_flair", "all"),
        missing_post_contrast=("post_contrast_is_flair", "all"),
    ).reset_index()
    patients = patients.astype({"missing_pre_contrast": int, "missing_post_contrast": int})
    patients.insert(1, "case_id", patients["patient_id"].map(case_id))
    ours = set(patients.columns) - {"case_id"}
    clinical = clinical.rename(columns={name: f"clinical_{name}" for name in ours})
    return patients.merge(clinical, on="case_id", how="left", validate="one_to_one")


def main(images: Path, masks: Path, clinical: Path, manifest: Path, patients: Path) -> None:
    names = sorted_slices(images)
    n = len(names)
    rows = in_parallel(partial(slice_row, images=images, masks=masks), names, "label", unit="slice")
    slices = pd.DataFrame(rows)
    clinical_table = read_clinical(clinical)
    table = patients_table(slices, clinical_table)
    with replacing(manifest, patients) as [manifest_partial, patients_partial]:
        flags = ["pre_contrast_is_flair", "post_contrast_is_flair"]
        slices.drop(columns=flags).to_csv(manifest_partial, index=False)
        table.to_csv(patients_partial, index=False)
    print(f"{n} slices, {slices['abnormal'].sum()} abnormal, of {len(table)} patients")
    lacking = sorted(set(table["case_id"]) - set(clinical_table["case_id"]))
    if lacking:
        print(f"{len(lacking)} patients without a row in {clinical}, the first {lacking[0]}")


if __name__ == "__main__":
    run(main)
