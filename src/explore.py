"""Look at the images: where tumors are, of what hue and size; and what to be warned of.

    python src/explore.py data/slices/images data/slices/masks data/manifest.csv data/patients.csv \
        metrics/explore.json metrics/explore

A leaf of the graph: nothing depends on it.
"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tqdm.contrib.concurrent import process_map

from exploration.findings import KINDS, Finding, mask_findings, near_duplicates, thumbnail
from exploration.measurements import (
    HUE_BINS,
    POSITIONS,
    TISSUES,
    Counts,
    Looks,
    circular_mean,
    concentration,
    image_left_share,
    level_mean,
    level_quantile,
    look,
    peak,
    read_volume,
)
from pipeline.command import run
from pipeline.outputs import DECIMALS, replacing, write_metrics
from scans.cohort import groups, read_patients
from scans.manifest import read_manifest
from scans.slices import SEQUENCES
from scans.volume import components, stack

QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
HUE_FIGURES = {"mean": circular_mean, "concentration": concentration, "peak": peak}
CODES = ("grade", "gender", "laterality", "tumor_location")  # columns of data.csv to group by


class Seen(NamedTuple):
    """What is kept of a patient once its slices have been looked at."""

    looks: Looks
    area: NDArray[np.float64]  # (D,) tumor area of each slice as a fraction of it
    n_components: int
    findings: list[Finding]
    thumbnails: NDArray[np.float32]  # (D, THUMBNAIL²)


def see(patient: tuple[str, list[str]], images: Path, masks: Path) -> Seen:
    """Look at all slices of a patient, named by its id and theirs."""
    patient_id, slice_ids = patient
    volume = read_volume(images, masks, slice_ids)
    return Seen(
        look(volume),
        np.array([mask.mean() for mask in volume.masks]),
        len(components(stack(volume.masks))[1]),
        mask_findings(patient_id, volume, masks),
        np.stack([thumbnail(image) for image in volume.images]),
    )


def quantiles(values: NDArray[np.float64]) -> dict[str, float]:
    """Return QUANTILES and the number of values; NaN of no values."""
    found = {
        name: float(np.quantile(values, q)) if len(values) else float("nan")
        for name, q in QUANTILES.items()
    }
    return {**found, "n": len(values)}


def n_with(counts: Iterable[Counts]) -> int:
    """Return how many patients' histograms hold anything: what is missing is left empty."""
    return sum(bool(each.any()) for each in counts)


def hues(looks: Looks) -> dict[str, float]:
    """Return circular mean, concentration and peak of each tissue's hue; degrees and [0, 1]."""
    return {
        f"{tissue}_{name}": function(counts)
        for tissue, counts in zip(TISSUES, looks.hue, strict=True)
        for name, function in HUE_FIGURES.items()
    }


def patient_table(patients: pd.DataFrame, seen: list[Seen]) -> pd.DataFrame:
    """Return one row a patient: what was seen beside what data.csv tells."""
    tumor = [each.looks.location.sum() / each.looks.n_pixels for each in seen]
    table = patients[["patient_id", "institution", "n_slices", "n_abnormal"]].assign(
        abnormal_fraction=patients["n_abnormal"] / patients["n_slices"],
        tumor_fraction=tumor,
        image_left_share=[image_left_share(each.looks) for each in seen],
        n_components=[each.n_components for each in seen],
        **{
            f"hue_{name}": [hues(each.looks)[name] for each in seen] for name in hues(seen[0].looks)
        },
    )
    joined = ["missing_pre_contrast", "missing_post_contrast", *CODES, "age"]
    return table.join(patients[[name for name in joined if name in patients]])


def cohort_table(patients: pd.DataFrame, seen: list[Seen]) -> pd.DataFrame:
    """Return one row for each group of patients: its size, its tumors, their side and hue."""
    positions = pd.Series(range(len(patients)), index=patients["patient_id"])
    rows = []
    for (attribute, value), group in groups(patients, *CODES).groupby(["attribute", "value"]):
        members = positions[group["patient_id"]].tolist()
        looks = Looks.sum(seen[member].looks for member in members)
        chosen = patients.iloc[members]
        rows.append(
            {
                "group": f"{attribute}: {value}",
                "n_patients": len(members),
                "n_slices": chosen["n_slices"].sum(),
                "n_abnormal": chosen["n_abnormal"].sum(),
                "slices_median": chosen["n_slices"].median(),
                "abnormal_fraction": chosen["n_abnormal"].sum() / chosen["n_slices"].sum(),
                "tumor_fraction": looks.location.sum() / looks.n_pixels,
                "image_left_share": image_left_share(looks),
                "n_patients_hue": n_with(seen[member].looks.hue for member in members),
                **{f"hue_{name}": degrees for name, degrees in hues(looks).items()},
            }
        )
    return pd.DataFrame(rows)


def sequence_table(patients: pd.DataFrame, seen: list[Seen]) -> pd.DataFrame:
    """Return the intensities of each institution, sequence and tissue, 0 to 255.

    Patients that lack a sequence do not count in it.
    """
    institutions = {"all": patients.index} | dict(patients.groupby("institution").groups)
    rows = []
    for institution, members in institutions.items():
        looks = Looks.sum(seen[member].looks for member in members)
        for channel, (sequence, tissues) in enumerate(zip(SEQUENCES, looks.levels, strict=True)):
            for tissue, counts in zip(TISSUES, tissues, strict=True):
                rows.append(
                    {
                        "group": f"{institution}: {tissue} in {sequence}",
                        "n_patients": n_with(seen[m].looks.levels[channel] for m in members),
                        "n_pixels": counts.sum(),
                        "mean": level_mean(counts),
                        **{q: level_quantile(counts, QUANTILES[q]) for q in QUANTILES},
                    }
                )
    return pd.DataFrame(rows)


def position_table(looks: Looks) -> pd.DataFrame:
    """Return what lies where along the volume, cut into POSITIONS from its first slice on."""
    n_slices, n_abnormal, tumor = looks.position.T
    return pd.DataFrame(
        {
            "position": (np.arange(POSITIONS) + 0.5) / POSITIONS,
            "n_slices": n_slices,
            "n_abnormal": n_abnormal,
            "abnormal_fraction": n_abnormal / np.maximum(1, n_slices),
            "tumor_share": tumor / max(1, tumor.sum()),
        }
    )


def hue_table(looks: Looks) -> pd.DataFrame:
    """Return the hue histogram of each tissue, as shares of its own colored pixels."""
    shares = looks.hue / np.maximum(1, looks.hue.sum(axis=1, keepdims=True))
    degrees = np.arange(HUE_BINS) * 360 // HUE_BINS
    return pd.DataFrame({"hue": degrees, **dict(zip(TISSUES, shares, strict=True))})


def finding_table(findings: list[Finding]) -> pd.DataFrame:
    """Return one row a finding, by kind and file."""
    return pd.DataFrame(findings, columns=Finding._fields).sort_values(["kind", "file", "other"])


def summary(
    patients: pd.DataFrame,
    seen: list[Seen],
    looks: Looks,
    area: NDArray[np.float64],
    findings: pd.DataFrame,
) -> dict[str, object]:
    """Return the figures of explore.json; areas are fractions of a slice, hues in degrees.

    `looks` and `area` are those of all patients together.
    """
    abnormal = area[area > 0]
    missing = patients[["missing_pre_contrast", "missing_post_contrast"]]
    return {
        "n_patients": len(patients),
        "n_slices": len(area),
        "n_slices_abnormal": len(abnormal),
        "abnormal_fraction": len(abnormal) / len(area),
        "tumor_pixel_fraction": int(looks.location.sum()) / looks.n_pixels,
        "tumor_area": quantiles(abnormal),
        "tumor_share_of_patient": quantiles(np.array([each.area.mean() for each in seen])),
        "slices_of_patient": quantiles(patients["n_slices"].to_numpy(dtype=np.float64)),
        "abnormal_of_patient": quantiles(patients["n_abnormal"].to_numpy(dtype=np.float64)),
        "tumor_share_image_left": image_left_share(looks),
        "hue": {**hues(looks), "n_patients": n_with(each.looks.hue for each in seen)},
        "intensity": {
            sequence: {
                "tumor_mean": level_mean(tumor),
                "healthy_mean": level_mean(healthy),
                "n_patients": n_with(each.looks.levels[channel] for each in seen),
            }
            for channel, (sequence, (tumor, healthy)) in enumerate(
                zip(SEQUENCES, looks.levels, strict=True)
            )
        },
        "n_missing_pre_contrast": int(missing["missing_pre_contrast"].sum()),
        "n_missing_post_contrast": int(missing["missing_post_contrast"].sum()),
        "n_complete": int((missing.sum(axis=1) == 0).sum()),
        "n_several_components": sum(each.n_components > 1 for each in seen),
        "findings": {kind: int((findings["kind"] == kind).sum()) for kind in KINDS},
    }


def main(
    images: Path, masks: Path, manifest: Path, patients: Path, metrics: Path, explored: Path
) -> None:
    slices, cohort = read_manifest(manifest), read_patients(patients)
    cohort = cohort.sort_values("patient_id", ignore_index=True)
    volumes = [(name, rows["slice_id"].tolist()) for name, rows in slices.groupby("patient_id")]
    assert [name for name, _ in volumes] == cohort["patient_id"].tolist()
    seen: list[Seen] = process_map(
        partial(see, images=images, masks=masks),
        volumes,
        chunksize=1,
        desc="explore",
        unit="patient",
        disable=None,
    )
    looked_at = pd.DataFrame(
        [(slice_id, name) for name, slice_ids in volumes for slice_id in slice_ids],
        columns=["slice_id", "patient_id"],
    )
    twins = near_duplicates(looked_at, np.concatenate([each.thumbnails for each in seen]), images)
    findings = finding_table([found for each in seen for found in each.findings] + twins)
    looks = Looks.sum(each.looks for each in seen)
    area = np.concatenate([each.area for each in seen])
    tables = {
        "cohort": cohort_table(cohort, seen),
        "findings": findings,
        "hue": hue_table(looks),
        "per_patient": patient_table(cohort, seen),
        "position": position_table(looks),
        "sequences": sequence_table(cohort, seen),
    }
    with replacing(explored) as [folder]:
        (folder / "figures").mkdir(parents=True)
        for name, table in tables.items():
            table.round(DECIMALS).to_csv(folder / f"{name}.csv", index=False)
        by_institution = {
            str(name): Looks.sum(seen[member].looks for member in members)
            for name, members in cohort.groupby("institution").groups.items()
        }
        from exploration.figures import (
            draw,  # Matplotlib: only now, so that the work above begins at once
        )

        for name, figure in draw(looks, by_institution, tables, area[area > 0]).items():
            path = folder / "figures" / f"{name}.png"
            figure.savefig(path, dpi=120, metadata={"Software": None})
    write_metrics(metrics, summary(cohort, seen, looks, area, findings))
    counts = findings["kind"].value_counts()
    told = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts) or "none"
    print(f"{len(slices)} slices of {len(cohort)} patients; findings: {told}")


if __name__ == "__main__":
    run(main)
