"""Score the trained network on train, val and test.

    python src/evaluate.py data/slices/images data/slices/masks data/splits.csv \
        models/encoder.safetensors models/unet.safetensors metrics/evaluate.json \
        metrics/evaluate/per_patient.csv

Every slice is scored at its own size: logits are resized back before the threshold, whatever image
size the network takes.
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
from pydantic import Field

from device import Device, Precision, make_fabric
from manifest import SPLITS, read_manifest
from network import load_network
from outputs import DECIMALS, replacing, write_metrics
from overlap import per_patient, summarize
from prediction import overlap_counts, predict
from stage import run


def score(slices: pd.DataFrame) -> tuple[dict[str, dict[str, float | int]], pd.DataFrame]:
    """Return the scores of each split, and the table of patients behind them.

    `slices` holds one row a slice with its split, patient, label and counts of pixels.
    """
    patients = per_patient(slices)
    scores = {
        split: summarize(slices[slices["split"] == split], patients[patients["split"] == split])
        for split in SPLITS
    }
    return scores, patients


def main(
    images: Path,
    masks: Path,
    splits: Path,
    encoder: Path,
    unet: Path,
    metrics: Path,
    patients: Path,
    *,
    batch_size: Annotated[int, Field(ge=1)],
    threshold: Annotated[float, Field(gt=0, lt=1)],
    compute_device: Device,
    compute_precision: Precision,
    compute_workers: Annotated[int, Field(ge=0)],
) -> None:
    network, model = load_network(unet, encoder)
    fabric = make_fabric(compute_device, compute_precision)
    manifest = read_manifest(splits)
    predictions = predict(
        fabric.setup(network),
        images,
        masks,
        manifest["slice_id"].tolist(),
        device=fabric.device,
        image_size=model.image_size,
        batch_size=batch_size,
        workers=compute_workers,
        title="evaluate",
    )
    counts = overlap_counts(predictions, threshold=threshold)
    scores, table = score(manifest.merge(counts, on="slice_id", validate="one_to_one"))
    with replacing(patients) as [partial]:
        table.round(DECIMALS).to_csv(partial, index=False)
    write_metrics(metrics, scores)
    for split, values in scores.items():
        print(
            f"{split}: IoU {values['iou']:.4f}, Dice by patient {values['dice_patient_mean']:.4f} "
            f"mean, {values['dice_patient_median']:.4f} median, n = {values['n_patients']}"
        )


if __name__ == "__main__":
    run(main, "evaluate", "compute.device", "compute.precision", "compute.workers")
