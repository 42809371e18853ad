"""Let the trained network predict every slice: the probability of tumor, pixel by pixel.

    python src/predict.py data/intensities.csv data/splits.csv models/encoder.safetensors \
        models/unet.safetensors data/predictions

It is not shown the masks. Logits are resized to the slice's own size, whatever image size the
network takes, before they become probabilities.
"""

import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

from learning.device import explained_failures, make_fabric, repeat_exactly
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
    repeat_exactly(also_on_gpus=True)
    fabric = make_fabric(compute)
    network.to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    slices = Slices(read_manifest(splits, "split", "slice_number", "image"))
    normalization = read_normalization(intensities, slices.table["patient_id"], model.normalize)
    batches = read_batches(
        slices, predict.batch_size, image_size=model.image_size, normalization=normalization
    )
    with replacing(predictions) as [folder], explained_failures("predict.batch_size"):
        folder.mkdir()
        answers = predict_slices(
            fabric, network, batches, slices, image_size=model.image_size, flips=predict.flips
        )
        progress = tqdm(slices.ids, desc="predict", unit="slice", leave=False, disable=None)
        for slice_id, logits in zip(progress, answers, strict=True):
            write_levels(encode(logits), folder, slice_id)


if __name__ == "__main__":
    run(main)
