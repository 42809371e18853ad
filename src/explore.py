"""Explore the images: tumor location, size, intensity and hue, and findings to check.

    python src/explore.py data/geometry.csv data/manifest.csv data/patients.csv \
        metrics/explore.json metrics/explore

split and report count the near-duplicates found here; no other stage depends on this one.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from exploration.findings import (
    KINDS,
    bone_share,
    mask_findings,
    near_duplicates,
    outlier_findings,
    slice_findings,
    thumbnail,
)
from exploration.measurements import Measurements, measure, read_volume
from exploration.tables import (
    Examined,
    cohort_table,
    finding_table,
    hue_table,
    patient_table,
    position_table,
    sequence_table,
    summary,
)
from pipeline.command import run
from pipeline.outputs import replacing, write_metrics, write_tables
from pipeline.parallel import in_parallel
from pipeline.refusals import Refusal, rebuild_hint
from scans.cohort import MISSING, read_patients
from scans.geometry import read_geometry
from scans.manifest import read_manifest
from scans.params import AcquireParams
from scans.volume import components, stack


class Patient(NamedTuple):
    """What is known about a patient before their slices are read."""

    rows: pd.DataFrame  # rows of the manifest
    missing: list[bool]  # by channel
    pixel: float | None  # size in mm; None if unknown


def examine(patient: Patient) -> Examined:
    """Read a patient's slices and return their measurements and findings."""
    rows, missing, pixel = patient
    volume = read_volume(rows)
    return Examined(
        measure(volume, missing),
        np.array([mask.mean() for mask in volume.masks]),
        len(components(stack(volume.masks), rows["slice_number"].tolist())[1]),
        mask_findings(volume) + slice_findings(volume),
        np.stack([thumbnail(image) for image in volume.images]),
        bone_share(volume, pixel),
    )


def main(
    geometry: Path,
    manifest: Path,
    patients: Path,
    metrics: Path,
    explored: Path,
    *,
    acquire: AcquireParams,
) -> None:
    sequences = acquire.channels
    slices = read_manifest(manifest, "slice_number", "image", "mask")
    cohort = read_patients(patients).sort_values("patient_id", ignore_index=True)
    volumes = [rows for _, rows in slices.groupby("patient_id")]
    if [rows["patient_id"].iloc[0] for rows in volumes] != cohort["patient_id"].tolist():
        raise Refusal(
            f"{patients}: not the same patients as in {manifest}; {rebuild_hint('build_manifest')}"
        )
    flags = cohort.reindex(columns=[f"{MISSING}{name}" for name in sequences], fill_value=0)
    missing = flags.astype(bool).to_numpy().tolist()
    voxels = {name: row.voxel for name, row in read_geometry(geometry).items()}
    patients_to_examine = [
        Patient(rows, absent, min(voxels[name][1:]) if name in voxels else None)
        for rows, absent, name in zip(volumes, missing, cohort["patient_id"], strict=True)
    ]
    examined = in_parallel(examine, patients_to_examine, "explore")
    thumbnails = np.concatenate([patient.thumbnails for patient in examined])
    duplicates = near_duplicates(pd.concat(volumes), thumbnails)
    outliers = outlier_findings(volumes, [patient.bone for patient in examined], voxels)
    findings = finding_table(
        [found for patient in examined for found in patient.findings] + duplicates + outliers
    )
    measured = Measurements.sum(patient.measured for patient in examined)
    area = np.concatenate([patient.area for patient in examined])
    tables = {
        "cohort": cohort_table(cohort, examined),
        "findings": findings,
        "hue": hue_table(measured),
        "per_patient": patient_table(cohort, examined),
        "position": position_table(measured),
        "sequences": sequence_table(cohort, examined, sequences),
    }
    by_institution = {
        str(name): Measurements.sum(examined[member].measured for member in members)
        for name, members in cohort.groupby("institution").groups.items()
    }
    with replacing(explored) as [folder]:
        (folder / "figures").mkdir(parents=True)
        write_tables(folder, tables)
        # Imported late: Matplotlib is slow to load
        from exploration.figures import draw

        for name, figure in draw(
            measured, by_institution, tables, area[area > 0], sequences
        ).items():
            path = folder / "figures" / f"{name}.png"
            figure.savefig(path, dpi=120, metadata={"Software": None})
    write_metrics(metrics, summary(cohort, examined, measured, area, findings, sequences))
    counts = findings["kind"].value_counts()
    listed = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts) or "none"
    print(f"slices: {len(slices)}; patients: {len(cohort)}; findings: {listed}")


if __name__ == "__main__":
    run(main)
