"""Predict the tumor probability of every pixel of every slice with the trained network.

    python src/predict.py data/intensities.csv data/splits.csv models/encoder.safetensors \
        models/unet.safetensors data/predictions

This stage does not read the masks. It resizes the logits from the network's image size to the
slice's original size before it converts them to probabilities.
"""

import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from learning.device import explain_failures, make_deterministic, make_fabric
from learning.inference import predict_slices
from learning.params import ComputeParams, PredictParams
from learning.weights import load_network
from pipeline.command import run
from pipeline.outputs import replacing
from scans.fitted import Slices, read_batches
from scans.manifest import read_manifest
from scans.normalization import read_normalization
from scans.probability_maps import encode, write_levels


def main(
    intensities: Path,
    splits: Path,
    encoder: Path,
    unet: Path,
    predictions: Path,
    *,
    predict: PredictParams,
    compute: ComputeParams,
) -> None:
    network, model = load_network(unet, encoder)
    make_deterministic(on_gpus=True)
    fabric = make_fabric(compute)
    network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    slices = Slices(read_manifest(splits, "split", "slice_number", "image"))
    normalization = read_normalization(intensities, slices.table["patient_id"], model.normalize)
    batches = read_batches(
        slices, predict.batch_size, image_size=model.image_size, normalization=normalization
    )
    with replacing(predictions) as [folder], explain_failures("predict.batch_size"):
        folder.mkdir()
        predicted = predict_slices(
            fabric, network, batches, slices, image_size=model.image_size, flips=predict.flips
        )
        progress = tqdm(slices.ids, desc="predict", unit="slice", leave=False, disable=None)
        for slice_id, logits in zip(progress, predicted, strict=True):
            write_levels(encode(logits), folder, slice_id)


if __name__ == "__main__":
    run(main)
