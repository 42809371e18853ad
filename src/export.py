"""Export the trained network to ONNX, with a JSON description for programs that use it.

    python src/export.py data/splits.csv models/encoder.safetensors models/unet.safetensors \
        metrics/evaluate.json metrics/evaluate models/glioma.onnx models/glioma.json

The JSON describes the input and output of the ONNX file, the preprocessing of scans, the scores
on test and the license. The ONNX file's metadata has the same JSON under `model`, without the
SHA-256 of the ONNX file. `src/segment.py` uses it.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from learning.onnx_export import INPUT, OUTPUT, onnx_bytes
from learning.params import PredictParams
from learning.weights import Model, load_network
from page.facts import SHOWN, data_license, data_name, is_measured, limits, read_table
from pipeline.command import run
from pipeline.outputs import file_sha256, json_text, read_metrics, replacing, rounded
from pipeline.params import Section
from pipeline.refusals import rebuild_hint
from scans.fitting import padded_size
from scans.intensity import P99
from scans.manifest import read_manifest
from scans.params import AcquireParams
from scoring.params import EvaluateParams

SCORES = ("dice_patient_mean", "dice_patient_median", "iou")
HINT = rebuild_hint("evaluate")


class ExportParams(Section):
    """The model's version, and facts about scans that the data set's files do not contain."""

    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    field_of_view: Annotated[float, Field(gt=0)]
    slice_spacing: Annotated[float, Field(gt=0)]


def interface(model: Model, export: ExportParams, sequences: Sequence[str]) -> dict[str, Any]:
    """Return the description of the network's input and output."""
    size = padded_size(model.image_size)
    return {
        "input": {
            "name": INPUT,
            "type": "uint8",
            "shape": ["n_slices", size, size, len(sequences)],
            "order": "slices from inferior to superior, rows from anterior to posterior, columns "
            "from the patient's right to left, channels in the order of `sequences`",
            "sequences": list(sequences),
            "image_size": model.image_size,
            "field_of_view_mm": export.field_of_view,
            "slice_spacing_mm": export.slice_spacing,
            "normalize": model.normalize,
            "normalization": "tissue is all voxels of a sequence that are brighter than the mean "
            "of all its voxels; percentile: the sequence is multiplied so that the 99th percentile "
            f"of tissue becomes {P99}, then rounded and clipped to 0 to 255",
        },
        "output": {"name": OUTPUT, "type": "float32", "shape": ["n_slices", size, size]},
    }


def select_test_scores(metrics: dict[str, Any], subgroups: pd.DataFrame) -> dict[str, Any]:
    """Return the test scores with 95 % intervals and n, also of patients with missing sequences."""
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
        "purpose": "predicts where human readers outline lower-grade glioma in MRI of the head",
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
        "test": select_test_scores(scores, read_table(evaluated / "subgroups.csv", HINT)),
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
