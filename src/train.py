"""Train the U-Net's decoder on the train slices; keep the epoch of the best validation IoU.

    python src/train.py data/slices/images data/slices/masks data/intensities.csv \
        data/splits.csv models/encoder.safetensors models/unet.safetensors metrics/train

Curves are written by DVCLive while it runs: `dvc plots show` in another shell draws them.
On several devices or machines it is started by `torchrun`, with the same arguments. A training
that was killed goes on from its last epoch, wherever the same one is started again.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import torch
from dvclive.live import Live
from lightning_fabric import Fabric
from pydantic import ConfigDict, Field, with_config
from torch import nn
from tqdm import tqdm
from typing_extensions import TypedDict

from learning.augmentation import augmentation
from learning.checkpoint import Progress, fingerprint, held
from learning.dataset import BatchOrder, Loader, SliceDataset, Workers, loader
from learning.device import (
    Device,
    Precision,
    Threads,
    environment,
    failures_told,
    make_fabric,
    precision_name,
    repeat_exactly,
    total,
)
from learning.inference import overlap_counts, predict
from learning.network import Model, Normalize, new_network, save_tensors
from learning.optimization import Loss, Schedule, Trainer, make_trainer, n_trained
from pipeline.command import Refusal, Seed, run
from pipeline.outputs import DECIMALS, file_sha256, replacing, write_metrics
from scans.intensity import Normalization, read_normalization
from scans.manifest import read_manifest
from scans.slices import slice_path
from scoring.overlap import iou

Fraction = Annotated[float, Field(ge=0, lt=1)]


@with_config(ConfigDict(extra="forbid", strict=True))
class Augment(TypedDict):
    """The params of train.augment; dataset.augmentation says what they do."""

    flip: bool
    rotate: Annotated[float, Field(ge=0, le=180)]
    scale: Fraction
    translate: Fraction
    brightness: Fraction
    contrast: Fraction
    gamma: Fraction
    gain: Fraction
    missing: Fraction


@contextmanager
def curves(folder: Path, progress: Progress) -> Iterator[Live]:
    """Yield DVCLive in an empty folder, with the curves as far as they had come."""
    with Live(str(folder), dvcyaml=None, save_dvc_exp=False) as live:
        for epoch, scores in enumerate(progress.curves, start=1):
            log_epoch(live, epoch, scores)
        yield live


def log_epoch(live: Live, epoch: int, scores: dict[str, float]) -> None:
    """Add a point to each curve."""
    live.step = epoch
    for name, value in scores.items():
        live.log_metric(name, round(value, DECIMALS))
    live.make_summary()  # type: ignore[no-untyped-call]


def refuse_bad_steps(losses: torch.Tensor, slice_ids: list[list[str]], *, epoch: int) -> None:
    """Refuse to go on when the loss of a step is not finite; name the first one and its slices."""
    bad = torch.nonzero(~torch.isfinite(losses))
    if len(bad):
        step = int(bad[0])
        raise Refusal(
            f"the loss is {losses[step].item()} in epoch {epoch}, step {step + 1} of {len(losses)},"
            f" slices {', '.join(slice_ids[step])}; try a lower train.learning_rate, or "
            "compute.precision: 32-true"
        )


def train_epoch(trainer: Trainer, batches: Loader, *, epoch: int) -> dict[str, float]:
    """Take one pass over the train slices; return the mean loss of its steps and its micro IoU.

    Scores are of the augmented slices of all processes, each before its own step. Nothing waits for
    the device within the epoch; a loss that is not finite stops the run at its end.
    """
    fabric = trainer.fabric
    trainer.compute.train()
    losses, slice_ids = [], []
    pixels = torch.zeros(3, dtype=torch.int64, device=fabric.device)  # P ∩ R, P, R
    quiet = None if fabric.is_global_zero else True  # None: shown in a terminal alone
    for batch in tqdm(batches, desc=f"epoch {epoch}", unit="batch", leave=False, disable=quiet):
        images = batch.images.to(fabric.device, non_blocking=True)
        masks = batch.masks.to(fabric.device, non_blocking=True)
        logits = trainer.compute(images)
        loss = trainer.loss_function(logits, masks.float())
        fabric.backward(loss)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.schedule.step()
        predicted, reference = logits.detach() > 0, masks.bool()
        pixels += torch.stack([(predicted & reference).sum(), predicted.sum(), reference.sum()])
        losses.append(loss.detach())
        slice_ids.append(batch.slice_ids)
    steps = torch.stack(losses).cpu().double()
    refuse_bad_steps(steps, slice_ids, epoch=epoch)
    loss_sum, n_losses = total(fabric, torch.stack([steps.sum(), torch.tensor(len(steps))]))
    tp, n_predicted, n_reference = total(fabric, pixels).tolist()
    return {
        "train/loss": (loss_sum / n_losses).item(),
        "train/iou": float(iou(tp, n_predicted - tp, n_reference - tp)),
    }


def average_statistics(fabric: Fabric, network: nn.Module) -> None:
    """Give batch norm in every process the mean of its statistics, unless they are synchronized."""
    learning = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    for buffer in (buffer for module in learning for buffer in module.buffers()):
        if buffer.is_floating_point() and fabric.world_size > 1:
            buffer.copy_(total(fabric, buffer) / fabric.world_size)


def validate(
    fabric: Fabric,
    network: nn.Module,
    images: Path,
    masks: Path,
    slice_ids: list[str],
    *,
    image_size: int,
    normalization: Normalization,
    batch_size: int,
    workers: Workers,
) -> float:
    """Return the micro IoU over slices at their own sizes, each predicted by one process."""
    predictions = predict(
        network,
        images,
        masks,
        slice_ids[fabric.global_rank :: fabric.world_size],
        device=fabric.device,
        image_size=image_size,
        normalization=normalization,
        batch_size=batch_size,
        workers=workers,
        title="val",
    )
    counts = overlap_counts(predictions, threshold=0.5)[["tp", "fp", "fn"]].sum()
    return float(iou(*total(fabric, torch.tensor(counts.tolist(), dtype=torch.int64))))


def select(splits: Path, split: str) -> pd.DataFrame:
    """Return the rows of a split's slices in the order of the table; refuse one without tumor."""
    table = read_manifest(splits, "split")
    rows = table[table["split"] == split]
    if not rows["abnormal"].any():
        raise Refusal(
            f"{splits}: no abnormal slice in {split} ({len(rows)} slices); take other patients, or "
            "another split.test_fold or split.val_fraction"
        )
    return rows


def refuse_bad_thaw(thaw_epochs: int, epochs: int, *, frozen: bool, world_size: int) -> None:
    """Refuse epochs with a thawed encoder that cannot be."""
    if thaw_epochs and not frozen:
        raise Refusal(
            f"train.thaw_epochs is {thaw_epochs} and encoder.frozen false; an encoder that learns "
            "from the start needs no thawing: set one of the two"
        )
    if thaw_epochs > epochs:
        raise Refusal(f"train.thaw_epochs is {thaw_epochs} of train.epochs {epochs}; take fewer")
    if thaw_epochs and world_size > 1:
        raise Refusal(
            f"train.thaw_epochs is {thaw_epochs} with {world_size} processes, which fix before the "
            "first step what they exchange; train in one process, or with encoder.frozen: false"
        )


def main(
    images: Path,
    masks: Path,
    intensities: Path,
    splits: Path,
    encoder: Path,
    unet: Path,
    metrics: Path,
    *,
    seed: Seed,
    encoder_name: str,
    encoder_frozen: bool,
    epochs: Annotated[int, Field(ge=1)],
    image_size: Annotated[int, Field(ge=32, le=4096)],
    batch_size: Annotated[int, Field(ge=2)],
    learning_rate: Annotated[float, Field(gt=0)],
    weight_decay: Annotated[float, Field(ge=0)],
    schedule: Schedule,
    loss: Loss,
    normalize: Normalize,
    abnormal_share: Annotated[float, Field(gt=0, lt=1)] | Literal["natural"],
    repeat: Annotated[int, Field(ge=0)],
    thaw_epochs: Annotated[int, Field(ge=0)],
    encoder_rate: Annotated[float, Field(gt=0)],
    deterministic: bool,
    augment: Augment,
    compute_device: Device,
    compute_precision: Precision,
    compute_threads: Threads,
    compute_compile: bool,
    compute_workers: Workers,
) -> None:
    arguments = {**locals()}
    repeat_exactly(also_on_gpus=deterministic)
    fabric = make_fabric(compute_device, compute_precision, compute_threads)
    surroundings = environment(fabric)
    if batch_size % fabric.world_size:
        raise Refusal(
            f"train.batch_size is {batch_size}, which {fabric.world_size} processes cannot share "
            "evenly; take a multiple of their number"
        )
    refuse_bad_thaw(thaw_epochs, epochs, frozen=encoder_frozen, world_size=fabric.world_size)
    train_rows, val_rows = select(splits, "train"), select(splits, "val")
    train_ids, val_ids = train_rows["slice_id"].tolist(), val_rows["slice_id"].tolist()
    normalization = read_normalization(intensities, train_ids + val_ids, normalize)
    dataset = SliceDataset(
        images,
        masks,
        train_ids,
        image_size=image_size,
        normalization=normalization,
        augment=augmentation(**augment),
        seed=seed + repeat,
    )
    order = BatchOrder(
        len(dataset),
        batch_size,
        seed=seed + repeat,
        abnormal=train_rows["abnormal"].to_numpy(dtype=bool),
        abnormal_share=None if abnormal_share == "natural" else abnormal_share,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    batches = loader(dataset, order, workers=compute_workers)
    torch.manual_seed(seed + repeat)
    network = new_network(encoder, name=encoder_name, frozen=encoder_frozen)
    trainer = make_trainer(
        fabric,
        network,
        loss=loss,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        schedule=schedule,
        n_steps=epochs * len(order),
        compiled=compute_compile,
        thaws=thaw_epochs > 0,
        encoder_rate=encoder_rate,
    )
    writes = fabric.is_global_zero  # fabric.print would speak once for each machine
    if writes:
        print(
            f"{len(dataset)} slices, {len(order)} steps of {batch_size} an epoch, "
            f"{n_trained(network):,} parameters trained, "
            f"on {fabric.world_size} × {fabric.device.type} in {precision_name(fabric)}"
        )

    def take_epoch(epoch: int) -> dict[str, float]:
        if epoch > epochs - thaw_epochs:
            network.thaw()
        order.epoch, begin = epoch, time.perf_counter()
        scores = train_epoch(trainer, batches, epoch=epoch)
        images_per_s = len(order) * batch_size / (time.perf_counter() - begin)
        average_statistics(fabric, network)
        scores["val/iou"] = validate(
            fabric,
            trainer.compute,
            images,
            masks,
            val_ids,
            image_size=image_size,
            normalization=normalization,
            batch_size=batch_size,
            workers=compute_workers,
        )
        if writes:
            print(
                f"epoch {epoch}/{epochs}: loss {scores['train/loss']:.4f}, "
                f"IoU {scores['train/iou']:.4f} train, {scores['val/iou']:.4f} val, "
                f"{images_per_s:.1f} images/s"
            )
        return scores

    key = None
    if writes:
        slices = [slice_path(folder, i) for folder in (images, masks) for i in train_ids + val_ids]
        key = fingerprint(
            {
                name: value
                for name, value in arguments.items()
                if name != "compute_workers" and not isinstance(value, Path)
            }
            | surroundings,
            [intensities, splits, encoder, *slices],
        )
    with held(key) as state, failures_told("train.batch_size"):
        progress = state.load(trainer, network)
        with curves(metrics, progress) if writes else nullcontext() as live:
            try:
                for epoch in range(progress.epoch + 1, epochs + 1):
                    progress.add(take_epoch(epoch), network)
                    if live:
                        log_epoch(live, epoch, progress.curves[-1])
                    state.save(progress, trainer, network)
            except KeyboardInterrupt:
                raise KeyboardInterrupt(state.way_on(progress.epoch)) from None
            if live:
                best_iou = round(progress.best_iou, DECIMALS)
                live.summary["best"] = {"epoch": progress.best_epoch, "val_iou": best_iou}
        if writes:
            write_metrics(metrics / "environment.json", surroundings)
            frozen = encoder_frozen and progress.best_epoch <= epochs - thaw_epochs
            sha256 = file_sha256(encoder)
            header = Model(encoder_name, sha256, frozen, image_size, normalize)
            with replacing(unet) as [partial]:
                save_tensors(progress.best_tensors, header, partial)
            state.finish(unet)


if __name__ == "__main__":
    run(
        main,
        "seed",
        "encoder.name",
        "encoder.frozen",
        "train",
        "compute.device",
        "compute.precision",
        "compute.threads",
        "compute.compile",
        "compute.workers",
    )
