"""Prediction over many slices, in batches; each slice is scored at its own size."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from learning.batches import BatchOrder, loader
from learning.network import Network
from learning.params import Workers
from learning.slice_dataset import SliceDataset, padded_size, unfit
from pipeline.refusals import Refusal


class Prediction(NamedTuple):
    """What the network says of one slice, beside the reference."""

    slice_id: str
    logits: NDArray[np.float32]  # (H, W), the slice's own size
    mask: NDArray[np.bool_]  # (H, W); empty where masks are not read


@torch.inference_mode()
def predict_slices(
    network: nn.Module,
    dataset: SliceDataset,
    *,
    device: torch.device,
    batch_size: int,
    workers: Workers,
    title: str,
) -> Iterator[Prediction]:
    """Yield each slice's logits in the order of the data set, every slice once."""
    batches = loader(dataset, BatchOrder(len(dataset), batch_size), workers=workers)
    network.eval()
    for batch in tqdm(batches, desc=title, unit="batch", leave=False, disable=None):
        logits = network(batch.images.to(device, non_blocking=True)).float().cpu()
        for slice_id, fitted, mask in zip(batch.slice_ids, logits, batch.own_masks, strict=True):
            if not torch.isfinite(fitted).all():
                raise Refusal(
                    f"the network's answer for slice {slice_id} is not finite: it has diverged; "
                    "train it again with a lower train.learning_rate"
                )
            height, width = mask.shape
            yield Prediction(
                slice_id, unfit(fitted, height, width, dataset.image_size).numpy(), mask
            )


def check_image_size(network: Network, name: str, image_size: int) -> None:
    """Refuse an encoder that cannot take slices of that size, as transformers of a fixed grid."""
    size = padded_size(image_size)
    try:
        with torch.inference_mode():
            network.eval()(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    except Exception as error:  # of many kinds, from smp and timm
        reason = " ".join(str(error).split())
        raise Refusal(
            f"encoder.name is {name!r}, which does not take slices of train.image_size "
            f"{image_size}, padded to {size} pixels: {reason} Choose another size or encoder."
        ) from None
    network.train()
