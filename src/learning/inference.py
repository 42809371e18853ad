"""Prediction of the slices of volumes, in order, resized to their original sizes."""

from collections.abc import Iterable, Iterator
from itertools import tee

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray

from learning.network import Network
from pipeline.refusals import Refusal
from scans.fitted import Batch, Slices
from scans.fitting import padded_size, unfit


def fitted_logits(
    fabric: Fabric,
    network: Network,
    images: Iterable[torch.Tensor],
    around: NDArray[np.int64],
    *,
    flipped: bool = False,
) -> Iterator[torch.Tensor]:
    """Yield logits (N, S, S) for batches of consecutive slices (N, S, S, 3).

    A chunk of logits may have more or fewer slices than a batch. `around` has the positions of the
    slices before and after each one. The encoder sees each slice once: its features are kept until
    those of the slice after it are available. With `flipped`, it sees left-right mirror images.
    """
    pending: list[torch.Tensor] = []  # at each level, the features of slices `first` to `end`
    first = done = end = 0
    for batch in images:
        end += len(batch)
        # With context, the last slice may have to wait for the one after it.
        ready = end - int(bool(network.context) and around[end - 1, 1] == end)
        positions = (around[done:ready, 0], np.arange(done, ready), around[done:ready, 1])
        with fabric.autocast():
            features = network.encode(batch.flip(2) if flipped else batch)
            if pending:
                features = [torch.cat(parts) for parts in zip(pending, features, strict=True)]
            if ready > done:
                local = (torch.from_numpy(p - first).to(batch.device) for p in positions)
                logits = network.decode(network.mix_context(features, *local))
                yield logits.flip(2) if flipped else logits
        kept = max(ready - 1, 0)
        pending, first, done = [level[kept - first :] for level in features], kept, ready


@torch.inference_mode()
def predict_slices(
    fabric: Fabric,
    network: Network,
    batches: Iterable[Batch],
    slices: Slices,
    *,
    image_size: int,
    flips: bool = False,
) -> Iterator[NDArray[np.float32]]:
    """Yield the logits (H, W) of each slice at its original size; `batches` are in order.

    With `flips`, logits are averaged over the slice and its left-right mirror image.
    """
    sizes: list[tuple[int, int]] = []

    def on_device() -> Iterator[torch.Tensor]:
        for batch in batches:
            sizes.extend(batch.sizes)
            yield torch.from_numpy(batch.images).to(fabric.device)

    network.eval()
    views = zip(tee(on_device(), 1 + flips), (False, True), strict=False)
    streams = [
        fitted_logits(fabric, network, view, slices.neighbors, flipped=f) for view, f in views
    ]
    chunks = (sum(views) / len(views) for views in zip(*streams, strict=True))
    fitted = (logits for chunk in chunks for logits in chunk.float().cpu())
    for position, logits in enumerate(fitted):
        if not torch.isfinite(logits).all():
            raise Refusal(
                f"the network's output for slice {slices.ids[position]} is not finite: training "
                "has diverged; train again with a lower train.learning_rate"
            )
        yield unfit(logits.numpy(), *sizes[position], image_size)


def check_image_size(network: Network, name: str, image_size: int) -> None:
    """Raise an error if the encoder cannot take this size, such as a fixed-grid transformer."""
    size = padded_size(image_size)
    try:
        with torch.inference_mode():
            n_slices = 3 if network.context else 1
            network.eval()(torch.zeros(1, n_slices, size, size, 3, dtype=torch.uint8))
    except Exception as error:  # smp and timm raise many kinds
        reason = " ".join(str(error).split())
        raise Refusal(
            f"the encoder {name!r} does not support train.image_size {image_size} (padded to "
            f"{size} pixels): {reason} Change train.image_size or encoder.name."
        ) from None
    network.train()
