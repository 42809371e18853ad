"""The reference loop for the speed of `src/train.py`, handwritten from smp's examples.

    python benchmarks/reference.py data/slices/images data/slices/masks data/splits.csv \
        models/encoder.safetensors --epochs 3

It uses fp32, `requires_grad = False` for the encoder, a Dataset that reads and augments one slice
at a time, the default DataLoader, and Adam. Loss, augmentation, learning-rate schedule and batch
size are those in params.yaml. It prints the validation IoU after each epoch.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # stops its online check for a newer version
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))
import albumentations

from learning.augmentation import augmentation
from learning.optimization import make_loss, make_schedule
from learning.params import AugmentParams
from pipeline.params import read_yaml

Pair = tuple[torch.Tensor, torch.Tensor]


class Slices(Dataset[Pair]):
    """Scans (3, S, S) float32 with ImageNet's normalization, and masks (S, S) float32."""

    def __init__(
        self,
        images: Path,
        masks: Path,
        slice_ids: list[str],
        image_size: int,
        augment: albumentations.Compose | None = None,
    ) -> None:
        self.images, self.masks, self.slice_ids = images, masks, slice_ids
        self.transform = albumentations.Compose(
            [
                albumentations.Resize(image_size, image_size),
                *([augment] if augment else []),
                albumentations.Normalize(),
                albumentations.ToTensorV2(),
            ]
        )

    def __len__(self) -> int:
        return len(self.slice_ids)

    def __getitem__(self, index: int) -> Pair:
        name = f"{self.slice_ids[index]}.tif"
        image = np.array(Image.open(self.images / name).convert("RGB"))
        mask = (np.array(Image.open(self.masks / name)) > 0).astype(np.float32)
        pair = self.transform(image=image, mask=mask)
        return pair["image"], pair["mask"]


def make_network(encoder_name: str, encoder: Path | None) -> nn.Module:
    """Return a U-Net with a frozen encoder; without a weights file, its weights are random."""
    network = smp.Unet(encoder_name, encoder_weights=None, classes=1)
    if encoder:
        network.encoder.load_state_dict(load_file(encoder))
    for parameter in network.encoder.parameters():
        parameter.requires_grad = False
    unet: nn.Module = network
    return unet


def train_epoch(
    network: nn.Module,
    batches: "DataLoader[Pair]",
    loss_function: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    device: torch.device,
) -> float:
    """Train on all batches; return the mean loss of the steps."""
    network.train()
    losses = 0.0
    for images, masks in batches:
        images, masks = images.to(device), masks.to(device)
        logits = network(images)
        loss = loss_function(logits[:, 0], masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses += loss.item()
    return losses / len(batches)


@torch.no_grad()
def validate(network: nn.Module, batches: "DataLoader[Pair]", device: torch.device) -> float:
    """Return the IoU over all pixels of all batches."""
    network.eval()
    overlap = union = 0
    for images, masks in batches:
        predicted = network(images.to(device))[:, 0] > 0
        reference = masks.to(device) > 0
        overlap += (predicted & reference).sum().item()
        union += (predicted | reference).sum().item()
    return overlap / union


def main() -> None:
    """Train on the train slices and validate on the val slices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("images", "masks", "splits", "encoder"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--image-size", type=int, default=256)
    arguments = parser.parse_args()
    params: dict[str, Any] = read_yaml()
    train = params["train"]

    torch.manual_seed(arguments.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    splits = pd.read_csv(arguments.splits)
    batches = {}
    for split in ("train", "val"):
        augment = augmentation(AugmentParams(**train["augment"])) if split == "train" else None
        if augment:
            augment.set_random_seed(arguments.seed)
        ids = splits.loc[splits["split"] == split, "slice_id"].tolist()
        slices = Slices(arguments.images, arguments.masks, ids, arguments.image_size, augment)
        is_train = split == "train"
        batches[split] = DataLoader(
            slices, train["batch_size"], shuffle=is_train, drop_last=is_train
        )
    network = make_network(params["encoder"]["name"], arguments.encoder).to(device)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=train["learning_rate"])
    schedule = make_schedule(
        train["schedule"], optimizer, n_steps=arguments.epochs * len(batches["train"])
    )
    for epoch in range(1, arguments.epochs + 1):
        begin = time.perf_counter()
        loss = train_epoch(
            network, batches["train"], make_loss(train["loss"]), optimizer, schedule, device
        )
        images_per_s = len(batches["train"]) * train["batch_size"] / (time.perf_counter() - begin)
        iou = validate(network, batches["val"], device)
        print(
            f"epoch {epoch}/{arguments.epochs}: loss {loss:.4f}, IoU {iou:.4f} val, "
            f"{images_per_s:.1f} images/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
