"""Train the U-Net's decoder on the train slices, and keep its last epoch or the best on val.

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
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from dvclive.live import Live
from lightning_fabric import Fabric

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH is set, too

from learning.augmentation import augmentation
from learning.batches import Batches, BatchMaker, BatchOrder
from learning.captured import make_step
from learning.checkpoint import Progress, State, fingerprint, locked_state
from learning.device import (
    environment,
    explained_failures,
    make_fabric,
    precision_name,
    repeat_exactly,
)
from learning.epochs import Step, average_statistics, train_epoch, validate
from learning.inference import check_image_size
from learning.optimization import Trainer, make_trainer, n_trained
from learning.params import ComputeParams, EncoderParams, TrainParams
from learning.weights import Model, new_network, save_tensors
from pipeline.command import run
from pipeline.outputs import DECIMALS, file_sha256, replacing, write_metrics
from pipeline.params import Seed
from pipeline.refusals import Refusal
from scans.fitted import FittedSlices, Slices
from scans.manifest import read_manifest
from scans.normalization import read_normalization


@dataclass(frozen=True)
class Training:
    """A training that is ready for its first epoch."""

    train: TrainParams
    trainer: Trainer
    batches: Batches  # of the train slices
    step: Step
    val: FittedSlices  # this process's share of the val slices
    validates: bool  # whether there are any

    @property
    def writes(self) -> bool:
        """Whether this process writes files and messages: the first of several."""
        return self.trainer.fabric.is_global_zero  # fabric.print would speak once for each machine


def select(splits: Path, train: TrainParams) -> dict[str, pd.DataFrame]:
    """Return the slices of train and of val, in the table's order; refuse one without tumor.

    There may be no val where it does not choose the epoch.
    """
    table = read_manifest(splits, "split", "slice_number", "image", "mask")
    slices = {split: table[table["split"] == split] for split in ("train", "val")}
    needed = slices if len(slices["val"]) or train.keep == "best" else {"train": slices["train"]}
    for split, rows in needed.items():
        if not rows["abnormal"].any():
            raise Refusal(
                f"{splits}: no abnormal slice in {split} ({len(rows)} slices); take other "
                "patients, or another split.test_fold or split.val_fraction, or for an empty val "
                "train.keep: last"
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
    scratch: Path,
) -> Training:
    """Return a training of the slices of train, validated on those of val.

    `seed` decides the decoder's initial weights, the order of slices and their augmentation. In the
    folder `scratch` is room for the fitted slices.
    """
    if train.batch_size % fabric.world_size:
        raise Refusal(
            f"train.batch_size is {train.batch_size}, which {fabric.world_size} processes cannot "
            "share evenly; take a multiple of their number"
        )
    torch.manual_seed(seed)
    network = new_network(
        encoder_file, name=encoder.name, frozen=encoder.frozen, context=train.context
    )
    check_image_size(network, encoder.name, train.image_size)
    patients = pd.concat(slices.values())["patient_id"]
    normalization = read_normalization(intensities, patients, train.normalize)
    fitted = partial(
        FittedSlices, image_size=train.image_size, normalization=normalization, folder=scratch
    )
    chosen = Slices(slices["train"])
    share = train.abnormal_share
    order = BatchOrder(
        len(chosen),
        train.batch_size,
        seed=seed,
        abnormal=chosen.table["abnormal"].to_numpy(dtype=bool),
        abnormal_share=None if share == "natural" else share,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    augment = augmentation(train.augment)
    maker = BatchMaker(fitted(chosen), context=train.context, augment=augment, seed=seed)
    batches = Batches(maker, order, device=fabric.device, workers=compute.workers)
    own = slices["val"]["patient_id"].unique()[fabric.global_rank :: fabric.world_size]
    val = slices["val"][slices["val"]["patient_id"].isin(own)]
    n_steps = train.epochs * len(order)
    trainer = make_trainer(fabric, network, train, n_steps=n_steps, compiled=compute.compile)
    own_val = fitted(Slices(val), keep_original_masks=True)
    step, validates = make_step(trainer), len(slices["val"]) > 0
    return Training(train, trainer, batches, step, own_val, validates)


def take_epoch(training: Training, epoch: int, progress: Progress) -> None:
    """Train for one epoch, validate, and add to the progress what came of it."""
    train, trainer, begin = training.train, training.trainer, time.perf_counter()
    training.batches.order.epoch = epoch
    scores = train_epoch(trainer, training.batches, training.step, epoch=epoch)
    images_per_s = len(training.batches) * train.batch_size / (time.perf_counter() - begin)
    average_statistics(trainer.fabric, trainer.network)
    with trainer.average.in_place():
        if training.validates:
            scores["val/iou"] = validate(trainer, training.val, train)
        progress.add(scores, trainer.network, best=train.keep == "best")
    if training.writes:
        shown = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
        print(f"epoch {epoch}/{train.epochs}: {shown}, {images_per_s:.1f} images/s")


def fit(training: Training, state: State, metrics: Path) -> Progress:
    """Train for all epochs, or for those that a checkpoint lacks; return what they came to."""
    trainer = training.trainer
    progress = state.load(trainer)
    with curves(metrics, progress) if training.writes else nullcontext() as live:
        try:
            for epoch in range(progress.epoch + 1, training.train.epochs + 1):
                take_epoch(training, epoch, progress)
                if live:
                    log_epoch(live, epoch, progress.curves[-1])
                state.save(progress, trainer)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(state.hint(progress.epoch)) from None
        if live:
            scores = progress.kept_scores
            kept = {name.replace("/", "_"): round(scores[name], DECIMALS) for name in scores}
            live.summary["kept"] = {"epoch": progress.kept_epoch, **kept}
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
    """Write the network of the epoch that is kept, and what rebuilds it."""
    header = Model(
        encoder.name,
        file_sha256(encoder_file),
        encoder.frozen,
        train.image_size,
        train.context,
        train.normalize,
    )
    with replacing(unet) as [partial]:
        save_tensors(progress.kept_tensors, header, partial)


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
    slices = select(splits, train)
    training = prepare(
        slices,
        intensities,
        encoder_file,
        fabric=fabric,
        seed=seed + train.repeat,
        encoder=encoder,
        train=train,
        compute=compute,
        scratch=unet.parent,
    )
    key = None
    if training.writes:
        print(
            f"{len(slices['train'])} slices, {len(training.batches)} steps of {train.batch_size} "
            f"an epoch, {n_trained(training.trainer.network):,} parameters trained, "
            f"on {fabric.world_size} × {surroundings['device']} in {precision_name(fabric)}"
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
