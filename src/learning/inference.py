"""Prediction over the slices of volumes, in order; each slice is scored at its own size."""

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
    """Yield logits (N, S, S) of slices that come in order, (N, S, S, 3): all of them in the end.

    `around` has the positions of the slices before and after each one. The encoder sees each slice
    once: its features wait until those of the slice after it are there. With `flipped` it looks at
    the left-right mirror image.
    """
    held: list[torch.Tensor] = []  # at each level the features of slices `first` to `end`
    first = done = end = 0
    for batch in images:
        end += len(batch)
        # With context, the last slice may have to wait for the one after it.
        ready = end - int(bool(network.context) and around[end - 1, 1] == end)
        positions = (around[done:ready, 0], np.arange(done, ready), around[done:ready, 1])
        with fabric.autocast():
            features = network.encode(batch.flip(2) if flipped else batch)
            if held:
                features = [torch.cat(parts) for parts in zip(held, features, strict=True)]
            if ready > done:
                places = (torch.from_numpy(each - first).to(batch.device) for each in positions)
                logits = network.decode(network.mixed(features, *places))
                yield logits.flip(2) if flipped else logits
        kept = max(ready - 1, 0)
        held, first, done = [level[kept - first :] for level in features], kept, ready


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
    """Yield the logits (H, W) of each slice at its own size; `batches` has the slices in order.

    With `flips`, the mean of those of the slice and of its left-right mirror image.
    """
    sizes: list[tuple[int, int]] = []

    def on_device() -> Iterator[torch.Tensor]:
        for batch in batches:
            sizes.extend(batch.sizes)
            yield torch.from_numpy(batch.images).to(fabric.device)

    network.eval()
    views = zip(tee(on_device(), 1 + flips), (False, True), strict=False)
    streams = [fitted_logits(fabric, network, view, slices.around, flipped=f) for view, f in views]
    chunks = (sum(views) / len(views) for views in zip(*streams, strict=True))
    fitted = (logits for chunk in chunks for logits in chunk.float().cpu())
    for position, logits in enumerate(fitted):
        if not torch.isfinite(logits).all():
            raise Refusal(
                f"the network's answer for slice {slices.ids[position]} is not finite: it has "
                "diverged; train it again with a lower train.learning_rate"
            )
        yield unfit(logits.numpy(), *sizes[position], image_size)


def check_image_size(network: Network, name: str, image_size: int) -> None:
    """Refuse an encoder that cannot take slices of that size, as transformers of a fixed grid."""
    size = padded_size(image_size)
    try:
        with torch.inference_mode():
            n_shown = 3 if network.context else 1
            network.eval()(torch.zeros(1, n_shown, size, size, 3, dtype=torch.uint8))
    except Exception as error:  # of many kinds, from smp and timm
        reason = " ".join(str(error).split())
        raise Refusal(
            f"encoder.name is {name!r}, which does not take slices of train.image_size "
            f"{image_size}, padded to {size} pixels: {reason} Choose another size or encoder."
        ) from None
    network.train()
