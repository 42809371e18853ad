"""Let the trained network predict every slice: the probability of tumor, pixel by pixel.

    python src/predict.py data/slices/images data/intensities.csv data/splits.csv \
        models/encoder.safetensors models/unet.safetensors data/predictions

It is not shown the masks. Logits are resized to the slice's own size, whatever image size the
network takes, before they become probabilities.
"""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from learning.dataset import Workers
from learning.device import (
    Device,
    Precision,
    Threads,
    failures_told,
    make_fabric,
    repeat_exactly,
)
from learning.inference import predict
from learning.network import load_network
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
    images: Path,
    intensities: Path,
    splits: Path,
    encoder: Path,
    unet: Path,
    predictions: Path,
    *,
    batch_size: Annotated[int, Field(ge=1)],
    flips: bool,
    compute_device: Device,
    compute_precision: Precision,
    compute_threads: Threads,
    compute_workers: Workers,
) -> None:
    network, model = load_network(unet, encoder)
    network.to(memory_format=torch.channels_last)
    repeat_exactly(also_on_gpus=True)
    fabric = make_fabric(compute_device, compute_precision, compute_threads)
    slice_ids = read_manifest(splits, "split")["slice_id"].tolist()
    normalization = read_normalization(intensities, slice_ids, model.normalize)
    with replacing(predictions) as [folder], failures_told("predict.batch_size"):
        folder.mkdir()
        for slice_id, logits, _ in predict(
            fabric.setup(Mirrored(network) if flips else network),
            images,
            None,
            slice_ids,
            device=fabric.device,
            image_size=model.image_size,
            normalization=normalization,
            batch_size=batch_size,
            workers=compute_workers,
            title="predict",
        ):
            write_levels(encode(logits), folder, slice_id)


if __name__ == "__main__":
    run(
        main, "predict", "compute.device", "compute.precision", "compute.threads", "compute.workers"
    )
