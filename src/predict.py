"""Let the trained network predict every slice: the probability of tumor, pixel by pixel.

    python src/predict.py data/intensities.csv data/splits.csv models/encoder.safetensors \
        models/unet.safetensors data/predictions

It is not shown the masks. Logits are resized to the slice's own size, whatever image size the
network takes, before they become probabilities.
"""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

from learning.device import explained_failures, make_fabric, repeat_exactly
from learning.inference import predict_slices
from learning.params import ComputeParams, PredictParams
from learning.slice_dataset import SliceDataset
from learning.weights import load_network
from pipeline.command import run
from pipeline.outputs import replacing
from scans.intensity import read_normalization
from scans.manifest import read_manifest
from scans.probability_maps import encode, write_levels


class Mirrored(nn.Module):
    """A network that also looks at the left-right mirrored slice, and averages both logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, S, S) of scans (N, S, S, 3)."""
        logits: torch.Tensor = self.network(images) + self.network(images.flip(2)).flip(2)
        return logits / 2


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
    network.to(memory_format=torch.channels_last)
    repeat_exactly(also_on_gpus=True)
    fabric = make_fabric(compute)
    slices = read_manifest(splits, "split", "image")
    normalization = read_normalization(intensities, slices["patient_id"], model.normalize)
    dataset = SliceDataset(
        slices, image_size=model.image_size, masks=False, normalization=normalization
    )
    with replacing(predictions) as [folder], explained_failures("predict.batch_size"):
        folder.mkdir()
        for slice_id, logits, _ in predict_slices(
            fabric.setup(Mirrored(network) if predict.flips else network),
            dataset,
            device=fabric.device,
            batch_size=predict.batch_size,
            workers=compute.workers,
            title="predict",
        ):
            write_levels(encode(logits), folder, slice_id)


if __name__ == "__main__":
    run(main)
