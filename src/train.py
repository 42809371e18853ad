"""Train the U-Net's decoder on the train slices; keep the epoch of the best validation IoU.

    python src/train.py data/intensities.csv data/splits.csv models/encoder.safetensors \
        models/unet.safetensors metrics/train

Curves are written by DVCLive while it runs: `dvc plots show` in another shell draws them.
On several devices or machines it is started by `torchrun`, with the same arguments. A training
that was killed goes on from its last epoch, wherever the same one is started again.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from dvclive.live import Live
from lightning_fabric import Fabric

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

from learning.augmentation import augmentation
from learning.batches import BatchOrder, Loader, loader
from learning.checkpoint import Progress, State, fingerprint, locked_state
from learning.device import (
    environment,
    explained_failures,
    make_fabric,
    precision_name,
    repeat_exactly,
)
from learning.epochs import average_statistics, train_epoch, validate
from learning.inference import check_image_size
from learning.optimization import Trainer, make_trainer, n_trained
from learning.params import ComputeParams, EncoderParams, TrainParams
from learning.slice_dataset import SliceDataset
from learning.weights import Model, new_network, save_tensors
from pipeline.command import run
from pipeline.outputs import DECIMALS, file_sha256, replacing, write_metrics
from pipeline.params import Seed
from pipeline.refusals import Refusal
from scans.intensity import read_normalization
from scans.manifest import read_manifest


@dataclass(frozen=True)
class Training:
    """A training that is ready for its first epoch."""

    train: TrainParams
    compute: ComputeParams
    trainer: Trainer
    order: BatchOrder  # of the train slices
    batches: Loader  # of the train slices, in that order
    val: SliceDataset  # this process's share of the val slices

    @property
    def writes(self) -> bool:
        """Whether this process writes files and messages: the first of several."""
        return self.trainer.fabric.is_global_zero  # fabric.print would speak once for each machine


def select(splits: Path) -> dict[str, pd.DataFrame]:
    """Return the slices of train and of val, in the table's order; refuse a split without tumor."""
    table = read_manifest(splits, "split", "image", "mask")
    slices = {split: table[table["split"] == split] for split in ("train", "val")}
    for split, rows in slices.items():
        if not rows["abnormal"].any():
            raise Refusal(
                f"{splits}: no abnormal slice in {split} ({len(rows)} slices); take other "
                "patients, or another split.test_fold or split.val_fraction"
            )
    return slices


def prepare(
    slices: dict[str, pd.DataFrame],
    intensities: Path,
    encoder_file: Path,
    *,
    fabric: Fabric,
    seed: int,
    encoder: EncoderParams,
    train: TrainParams,
    compute: ComputeParams,
) -> Training:
    """Return a training of the slices of train, validated on those of val.

    `seed` decides the decoder's initial weights, the order of slices and their augmentation.
    """
    if train.batch_size % fabric.world_size:
        raise Refusal(
            f"train.batch_size is {train.batch_size}, which {fabric.world_size} processes cannot "
            "share evenly; take a multiple of their number"
        )
    patients = pd.concat(slices.values())["patient_id"]
    normalization = read_normalization(intensities, patients, train.normalize)
    dataset = SliceDataset(
        slices["train"],
        image_size=train.image_size,
        normalization=normalization,
        augment=augmentation(train.augment),
        seed=seed,
    )
    own_share = slices["val"].iloc[fabric.global_rank :: fabric.world_size]
    val = SliceDataset(own_share, image_size=train.image_size, normalization=normalization)
    order = BatchOrder(
        len(dataset),
        train.batch_size,
        seed=seed,
        abnormal=slices["train"]["abnormal"].to_numpy(dtype=bool),
        abnormal_share=None if train.abnormal_share == "natural" else train.abnormal_share,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    batches = loader(dataset, order, workers=compute.workers)
    torch.manual_seed(seed)
    network = new_network(encoder_file, name=encoder.name, frozen=encoder.frozen)
    check_image_size(network, encoder.name, train.image_size)
    n_steps = train.epochs * len(order)
    trainer = make_trainer(fabric, network, train, n_steps=n_steps, compiled=compute.compile)
    return Training(train, compute, trainer, order, batches, val)


def take_epoch(training: Training, epoch: int) -> dict[str, float]:
    """Train for one epoch and validate; return the scores, by the name of their curve."""
    train, trainer = training.train, training.trainer
    training.order.epoch, begin = epoch, time.perf_counter()
    scores = train_epoch(trainer, training.batches, epoch=epoch)
    images_per_s = len(training.order) * train.batch_size / (time.perf_counter() - begin)
    average_statistics(trainer.fabric, trainer.network)
    scores["val/iou"] = validate(
        trainer.fabric,
        trainer.wrapped,
        training.val,
        batch_size=train.batch_size,
        workers=training.compute.workers,
    )
    if training.writes:
        print(
            f"epoch {epoch}/{train.epochs}: loss {scores['train/loss']:.4f}, "
            f"IoU {scores['train/iou']:.4f} train, {scores['val/iou']:.4f} val, "
            f"{images_per_s:.1f} images/s"
        )
    return scores


def fit(training: Training, state: State, metrics: Path) -> Progress:
    """Train for all epochs, or for those that a checkpoint lacks; return what they came to.

    Ctrl-C takes effect between two batches: see `Loader` in learning/batches.py.
    """
    trainer = training.trainer
    progress = state.load(trainer)
    with curves(metrics, progress) if training.writes else nullcontext() as live:
        try:
            for epoch in range(progress.epoch + 1, training.train.epochs + 1):
                progress.add(take_epoch(training, epoch), trainer.network)
                if live:
                    log_epoch(live, epoch, progress.curves[-1])
                state.save(progress, trainer)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(state.hint(progress.epoch)) from None
        if live:
            best_iou = round(progress.best_iou, DECIMALS)
            live.summary["best"] = {"epoch": progress.best_epoch, "val_iou": best_iou}
    return progress


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


def save(
    progress: Progress, encoder_file: Path, unet: Path, encoder: EncoderParams, train: TrainParams
) -> None:
    """Write the network of the best epoch, and what rebuilds it."""
    sha256 = file_sha256(encoder_file)
    header = Model(encoder.name, sha256, encoder.frozen, train.image_size, train.normalize)
    with replacing(unet) as [partial]:
        save_tensors(progress.best_tensors, header, partial)


def main(
    intensities: Path,
    splits: Path,
    encoder_file: Path,
    unet: Path,
    metrics: Path,
    *,
    seed: Seed,
    encoder: EncoderParams,
    train: TrainParams,
    compute: ComputeParams,
) -> None:
    repeat_exactly(also_on_gpus=train.deterministic)
    fabric = make_fabric(compute)
    surroundings = environment(fabric)
    slices = select(splits)
    training = prepare(
        slices,
        intensities,
        encoder_file,
        fabric=fabric,
        seed=seed + train.repeat,
        encoder=encoder,
        train=train,
        compute=compute,
    )
    key = None
    if training.writes:
        print(
            f"{len(slices['train'])} slices, {len(training.order)} steps of {train.batch_size} an "
            f"epoch, {n_trained(training.trainer.network):,} parameters trained, "
            f"on {fabric.world_size} × {fabric.device.type} in {precision_name(fabric)}"
        )
        settings: dict[str, Any] = {
            "seed": seed,
            "encoder": encoder.model_dump(exclude={"weights"}),
            "train": train.model_dump(),
            "compute": compute.model_dump(exclude={"workers"}),
        }
        images_and_masks = pd.concat(slices.values())[["image", "mask"]].to_numpy().ravel()
        inputs = [intensities, splits, encoder_file, *map(Path, images_and_masks)]
        key = fingerprint(settings | surroundings, inputs)
    with locked_state(key) as state, explained_failures("train.batch_size"):
        progress = fit(training, state, metrics)
        if training.writes:
            write_metrics(metrics / "environment.json", surroundings)
            save(progress, encoder_file, unet, encoder, train)
            state.finish(unet)


if __name__ == "__main__":
    run(main)
