"""Train the U-Net on the train slices; keep the last epoch, or the best one on val.

    python src/train.py data/intensities.csv data/splits.csv models/encoder.safetensors \
        models/unet.safetensors metrics/train

DVCLive writes curves during training; `dvc plots show` in another shell plots them. To train on
several devices or machines, start the script with `torchrun` and the same arguments. A training
that was killed resumes after its last complete epoch when it is started again.
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

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from learning.augmentation import augmentation
from learning.batches import Batches, BatchMaker, BatchOrder
from learning.captured import make_step
from learning.checkpoint import Checkpoint, Progress, fingerprint, locked_checkpoint
from learning.device import (
    environment,
    explain_failures,
    make_deterministic,
    make_fabric,
    precision_name,
)
from learning.epochs import Step, average_batch_norm, train_epoch, validate
from learning.inference import check_image_size
from learning.optimization import Trainer, make_trainer, n_trained
from learning.params import ComputeParams, EncoderParams, TrainParams
from learning.weights import Model, new_network, save_tensors
from pipeline.command import run
from pipeline.outputs import DECIMALS, file_sha256, replacing, write_metrics
from pipeline.params import Seed
from pipeline.refusals import Refusal, quantity
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
    has_val: bool  # whether any process has val slices

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and messages: the first of all."""
        return self.trainer.fabric.is_global_zero  # fabric.print would print once per machine


def select_slices(splits: Path, train: TrainParams) -> dict[str, pd.DataFrame]:
    """Return the train and val slices in the table's order; raise an error if one lacks tumor.

    Val may be empty if it is not needed to select the best epoch.
    """
    table = read_manifest(splits, "split", "slice_number", "image", "mask")
    slices = {split: table[table["split"] == split] for split in ("train", "val")}
    checked = slices if len(slices["val"]) or train.keep == "best" else {"train": slices["train"]}
    for split, rows in checked.items():
        if not rows["abnormal"].any():
            raise Refusal(
                f"{splits}: no abnormal slice in {split} ({quantity(len(rows), 'slice')}). Change "
                "split.test_fold or split.val_fraction, or add patients with tumor. If val is "
                "empty, set train.keep to last."
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
    """Return a training on the train slices that is validated on the val slices.

    `seed` determines the decoder's initial weights, the order of slices and their augmentation.
    The fitted slices are stored temporarily in the folder `scratch`.
    """
    if train.batch_size % fabric.world_size:
        raise Refusal(
            f"train.batch_size is {train.batch_size}, which {fabric.world_size} processes cannot "
            "share evenly; use a multiple of the number of processes"
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
    train_slices = Slices(slices["train"])
    share = train.abnormal_share
    order = BatchOrder(
        len(train_slices),
        train.batch_size,
        seed=seed,
        abnormal=train_slices.table["abnormal"].to_numpy(dtype=bool),
        abnormal_share=None if share == "natural" else share,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    augment = augmentation(train.augment)
    maker = BatchMaker(fitted(train_slices), context=train.context, augment=augment, seed=seed)
    batches = Batches(maker, order, device=fabric.device, workers=compute.workers)
    patients_here = slices["val"]["patient_id"].unique()[fabric.global_rank :: fabric.world_size]
    val_here = slices["val"][slices["val"]["patient_id"].isin(patients_here)]
    n_steps = train.epochs * len(order)
    trainer = make_trainer(fabric, network, train, n_steps=n_steps, compiled=compute.compile)
    val = fitted(Slices(val_here), keep_original_masks=True)
    step, has_val = make_step(trainer), len(slices["val"]) > 0
    return Training(train, trainer, batches, step, val, has_val)


def run_epoch(training: Training, epoch: int, progress: Progress) -> None:
    """Train for one epoch, validate, and add the scores to the progress."""
    train, trainer, begin = training.train, training.trainer, time.perf_counter()
    training.batches.order.epoch = epoch
    scores = train_epoch(trainer, training.batches, training.step, epoch=epoch)
    images_per_s = len(training.batches) * train.batch_size / (time.perf_counter() - begin)
    average_batch_norm(trainer.fabric, trainer.network)
    with trainer.average.applied():
        if training.has_val:
            scores["val/iou"] = validate(trainer, training.val, train)
        progress.add(scores, trainer.network, best=train.keep == "best")
    if training.is_main:
        shown = ", ".join(f"{name} {score:.4f}" for name, score in scores.items())
        print(f"epoch {epoch}/{train.epochs}: {shown}, {images_per_s:.1f} images/s")


def fit(training: Training, checkpoint: Checkpoint, metrics: Path) -> Progress:
    """Train for all epochs that are not in the checkpoint yet; return the progress."""
    trainer = training.trainer
    progress = checkpoint.load(trainer)
    with curves(metrics, progress) if training.is_main else nullcontext() as live:
        try:
            for epoch in range(progress.epoch + 1, training.train.epochs + 1):
                run_epoch(training, epoch, progress)
                if live:
                    log_epoch(live, epoch, progress.curves[-1])
                checkpoint.save(progress, trainer)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(checkpoint.hint(progress.epoch)) from None
        if live:
            scores = progress.kept_scores
            kept = {name.replace("/", "_"): round(scores[name], DECIMALS) for name in scores}
            live.summary["kept"] = {"epoch": progress.kept_epoch, **kept}
    return progress


@contextmanager
def curves(folder: Path, progress: Progress) -> Iterator[Live]:
    """Yield a DVCLive logger for an empty folder, with the curves of the finished epochs."""
    with Live(str(folder), dvcyaml=None, save_dvc_exp=False) as live:
        for epoch, scores in enumerate(progress.curves, start=1):
            log_epoch(live, epoch, scores)
        yield live


def log_epoch(live: Live, epoch: int, scores: dict[str, float]) -> None:
    """Add an epoch's point to each curve."""
    live.step = epoch
    for name, value in scores.items():
        live.log_metric(name, round(value, DECIMALS))
    live.make_summary()  # type: ignore[no-untyped-call]


def save(
    progress: Progress, encoder_file: Path, unet: Path, encoder: EncoderParams, train: TrainParams
) -> None:
    """Write the network of the epoch to keep, with a header that rebuilds it."""
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
    make_deterministic(on_gpus=train.deterministic)
    fabric = make_fabric(compute)
    run_environment = environment(fabric)
    slices = select_slices(splits, train)
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
    if training.is_main:
        print(
            f"{len(slices['train'])} slices, {len(training.batches)} steps of {train.batch_size} "
            f"an epoch, {n_trained(training.trainer.network):,} parameters trained, "
            f"on {fabric.world_size} × {run_environment['device']} in {precision_name(fabric)}"
        )
        settings: dict[str, Any] = {
            "seed": seed,
            "encoder": encoder.model_dump(exclude={"weights"}),
            "train": train.model_dump(),
            "compute": compute.model_dump(exclude={"workers"}),
        }
        images_and_masks = pd.concat(slices.values())[["image", "mask"]].to_numpy().ravel()
        inputs = [intensities, splits, encoder_file, *map(Path, images_and_masks)]
        key = fingerprint(settings | run_environment, inputs)
    with locked_checkpoint(key) as checkpoint, explain_failures("train.batch_size"):
        progress = fit(training, checkpoint, metrics)
        if training.is_main:
            write_metrics(metrics / "environment.json", run_environment)
            save(progress, encoder_file, unet, encoder, train)
            checkpoint.finish(unet)


if __name__ == "__main__":
    run(main)
