"""Write the trained network as a file that programs use without PyTorch, and what they must know.

    python src/export.py data/splits.csv models/encoder.safetensors models/unet.safetensors \
        metrics/evaluate.json metrics/evaluate models/glioma.onnx models/glioma.json

The JSON says what the ONNX file takes and gives, how a scan is brought to that form, how well it
does, and under which licenses it is. The same JSON, but for the file's SHA-256, is in the ONNX
file's metadata under `model`. `src/segment.py` uses it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

from learning.onnx_export import INPUT, OUTPUT, onnx_bytes
from learning.params import PredictParams
from learning.weights import Model, load_network
from page.facts import SHOWN, data_license, data_name, is_measured, limits, read_table
from pipeline.command import run
from pipeline.outputs import file_sha256, json_text, read_metrics, replacing, rounded
from pipeline.params import Section
from pipeline.refusals import remake
from scans.fitting import padded_size
from scans.intensity import P99
from scans.manifest import read_manifest
from scans.params import AcquireParams
from scoring.params import EvaluateParams

SCORES = ("dice_patient_mean", "dice_patient_median", "iou")
HINT = remake("evaluate")


class ExportParams(Section):
    """What the files of the data set do not say, and the version of the model."""

    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    field_of_view: Annotated[float, Field(gt=0)]
    slice_spacing: Annotated[float, Field(gt=0)]


def interface(model: Model, export: ExportParams, sequences: Sequence[str]) -> dict[str, Any]:
    """Return what a program must know to call the network."""
    size = padded_size(model.image_size)
    return {
        "input": {
            "name": INPUT,
            "type": "uint8",
            "shape": ["n_slices", size, size, len(sequences)],
            "order": "slices from inferior to superior, rows from anterior to posterior, columns "
            "from the patient's right to left, channels as sequences",
            "sequences": list(sequences),
            "image_size": model.image_size,
            "field_of_view_mm": export.field_of_view,
            "slice_spacing_mm": export.slice_spacing,
            "normalize": model.normalize,
            "normalization": "of each sequence, tissue is what is brighter than the mean of all "
            f"its voxels; percentile: its 99th percentile becomes {P99}; then rounded and clipped",
        },
        "output": {"name": OUTPUT, "type": "float32", "shape": ["n_slices", size, size]},
    }


def scores_on_test(metrics: dict[str, Any], subgroups: pd.DataFrame) -> dict[str, Any]:
    """Return scores on test with 95 % intervals and n, also of patients who lack sequences."""
    test = metrics[SHOWN]
    keys = [f"{score}{end}" for score in SCORES for end in ("", "_low", "_high")]
    columns = ["value", "n_patients_dice", "dice_patient_mean"]
    rows = subgroups.query("split == @SHOWN and attribute == 'missing sequence'")[columns]
    return {
        "n_patients": test["n_patients"],
        **{key: test[key] for key in keys},
        "by_missing_sequence": [
            {"missing": missing, "n_patients": int(n), "dice_patient_mean": mean}
            for missing, n, mean in rows.itertuples(index=False)
        ],
    }


def main(
    splits: Path,
    encoder_file: Path,
    model_file: Path,
    metrics: Path,
    evaluated: Path,
    onnx_file: Path,
    description_file: Path,
    *,
    acquire: AcquireParams,
    predict: PredictParams,
    evaluate: EvaluateParams,
    export: ExportParams,
) -> None:
    network, model = load_network(model_file, encoder_file)
    scores = read_metrics(metrics, HINT)
    slices = read_manifest(splits, "split", "institution")
    trained = slices[slices["split"] == "train"]
    description: dict[str, Any] = {
        "name": "glioma",
        "version": export.version,
        "purpose": "outlines in MRI of the head what readers outlined as lower-grade glioma",
        "warning": "Not a medical device, not for clinical use.",
        "license": data_license(acquire.dataset),
        **interface(model, export, acquire.channels),
        "threshold": scores[SHOWN]["threshold"],
        "component_share": evaluate.component_share,
        "trained_on": {
            "dataset": data_name(acquire.dataset),
            "n_patients": trained["patient_id"].nunique(),
            "n_slices": len(trained),
        },
        "test": scores_on_test(scores, read_table(evaluated / "subgroups.csv", HINT)),
        "limits": limits(
            acquire.dataset,
            n_institutions=slices["institution"].nunique(),
            context=model.context,
            calibration=scores[SHOWN]["ece_above_first_bin"],
            measured=is_measured(scores[SHOWN]),
        ),
        "sha256": {"unet": file_sha256(model_file), "encoder": file_sha256(encoder_file)},
    }
    description = rounded(description)
    with replacing(onnx_file, description_file) as [onnx_partial, description_partial]:
        content = onnx_bytes(
            network,
            image_size=padded_size(model.image_size),
            flips=predict.flips,
            metadata={"model": json.dumps(description)},
        )
        onnx_partial.write_bytes(content)
        description["sha256"] |= {"onnx": file_sha256(onnx_partial)}
        description_partial.write_text(json_text(description), encoding="utf-8")
    print(f"{onnx_file}: {len(content) / 1e6:.1f} MB; {description_file}")


if __name__ == "__main__":
    run(main)
