"""Prediction over many slices, in batches; each slice is scored at its own size."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from learning.dataset import BatchOrder, SliceDataset, Workers, loader, unfit
from pipeline.command import Refusal
from scans.intensity import Normalization
from scoring.overlap import COUNTS, count_pixels


class Prediction(NamedTuple):
    """What the network says of one slice, beside the reference."""

    slice_id: str
    logits: NDArray[np.float32]  # (H, W), the slice's own size
    mask: NDArray[np.bool_]  # (H, W); empty where no masks were given


@torch.inference_mode()
def predict(
    network: nn.Module,
    images: Path,
    masks: Path | None,
    slice_ids: list[str],
    *,
    device: torch.device,
    image_size: int,
    normalization: Normalization,
    batch_size: int,
    workers: Workers,
    title: str,
) -> Iterator[Prediction]:
    """Yield each slice's logits in the order of `slice_ids`, every slice once."""
    dataset = SliceDataset(
        images, masks, slice_ids, image_size=image_size, normalization=normalization
    )
    batches = loader(dataset, BatchOrder(len(slice_ids), batch_size), workers=workers)
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
            yield Prediction(slice_id, unfit(fitted, height, width, image_size).numpy(), mask)


def overlap_counts(predictions: Iterator[Prediction], *, threshold: float) -> pd.DataFrame:
    """Return slice_id, tp, fp, fn and tn of each slice, P being where probability > `threshold`."""
    logit = float(np.log(threshold / (1 - threshold)))
    rows = [
        {"slice_id": slice_id, **count_pixels(logits > logit, mask)}
        for slice_id, logits, mask in predictions
    ]
    return pd.DataFrame(rows, columns=["slice_id", *COUNTS])
