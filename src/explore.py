"""Look at the images: where tumors are, of what hue and size; and what to be warned of.

    python src/explore.py data/manifest.csv data/patients.csv metrics/explore.json metrics/explore

split and report count the near-duplicates that it finds; nothing else depends on it.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

from exploration.findings import KINDS, mask_findings, near_duplicates, slice_findings, thumbnail
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
from pipeline.refusals import Refusal, remake
from scans.cohort import read_patients
from scans.manifest import read_manifest
from scans.tiff import SEQUENCES
from scans.volume import components, stack


def examine(patient: tuple[pd.DataFrame, list[bool]]) -> Examined:
    """Look at a patient's slices, its rows of the manifest; the flags are of missing SEQUENCES."""
    rows, missing = patient
    volume = read_volume(rows)
    return Examined(
        measure(volume, missing),
        np.array([mask.mean() for mask in volume.masks]),
        len(components(stack(volume.masks), rows["slice_number"].tolist())[1]),
        mask_findings(volume) + slice_findings(volume),
        np.stack([thumbnail(image) for image in volume.images]),
    )


def main(manifest: Path, patients: Path, metrics: Path, explored: Path) -> None:
    slices = read_manifest(manifest, "slice_number", "image", "mask")
    cohort = read_patients(patients).sort_values("patient_id", ignore_index=True)
    volumes = [rows for _, rows in slices.groupby("patient_id")]
    if [rows["patient_id"].iloc[0] for rows in volumes] != cohort["patient_id"].tolist():
        raise Refusal(f"{patients}: other patients than {manifest}; {remake('build_manifest')}")
    flags = cohort.reindex(columns=[f"missing_{name}" for name in SEQUENCES], fill_value=0)
    missing = flags.astype(bool).to_numpy().tolist()
    examined = in_parallel(examine, zip(volumes, missing, strict=True), "explore")
    thumbnails = np.concatenate([each.thumbnails for each in examined])
    twins = near_duplicates(pd.concat(volumes), thumbnails)
    findings = finding_table([found for each in examined for found in each.findings] + twins)
    measured = Measurements.sum(each.measured for each in examined)
    area = np.concatenate([each.area for each in examined])
    tables = {
        "cohort": cohort_table(cohort, examined),
        "findings": findings,
        "hue": hue_table(measured),
        "per_patient": patient_table(cohort, examined),
        "position": position_table(measured),
        "sequences": sequence_table(cohort, examined),
    }
    by_institution = {
        str(name): Measurements.sum(examined[member].measured for member in members)
        for name, members in cohort.groupby("institution").groups.items()
    }
    with replacing(explored) as [folder]:
        (folder / "figures").mkdir(parents=True)
        write_tables(folder, tables)
        # Matplotlib: only now, so that the work begins at once
        from exploration.figures import draw

        for name, figure in draw(measured, by_institution, tables, area[area > 0]).items():
            path = folder / "figures" / f"{name}.png"
            figure.savefig(path, dpi=120, metadata={"Software": None})
    write_metrics(metrics, summary(cohort, examined, measured, area, findings))
    counts = findings["kind"].value_counts()
    listed = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts) or "none"
    print(f"{len(slices)} slices of {len(cohort)} patients; findings: {listed}")


if __name__ == "__main__":
    run(main)
