"""Train the U-Net's decoder on the train slices; keep the epoch of the best validation IoU.

    python src/train.py data/slices/images data/slices/masks data/splits.csv \
        models/encoder.safetensors models/unet.safetensors metrics/train

Curves are written by DVCLive while it runs: `dvc plots show` in another shell draws them.
On several devices or machines it is started by `torchrun`, with the same arguments.
"""

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import segmentation_models_pytorch as smp
import torch
from dvclive.live import Live
from lightning_fabric import Fabric
from pydantic import ConfigDict, Field, with_config
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from typing_extensions import TypedDict

from dataset import Batch, BatchOrder, SliceDataset, Workers, augmentation, loader
from device import Device, Precision, make_fabric, precision_name, total
from manifest import read_manifest
from network import Model, Network, Tensors, file_sha256, new_network, save_tensors
from outputs import DECIMALS, replacing
from overlap import iou
from prediction import overlap_counts, predict
from stage import Refusal, Seed, run

Fraction = Annotated[float, Field(ge=0, lt=1)]
Loss = Literal["bce_dice", "bce", "dice", "focal"]
Schedule = Literal["one_cycle", "cosine", "constant"]


@with_config(ConfigDict(extra="forbid"))
class Augment(TypedDict):
    """The params of train.augment; dataset.augmentation says what they do."""

    flip: bool
    rotate: Annotated[float, Field(ge=0, le=180)]
    scale: Fraction
    translate: Fraction
    brightness: Fraction
    contrast: Fraction


class BCEDiceLoss(nn.Module):
    """The mean of binary cross-entropy and Dice loss over a batch.

    Dice loss alone is 0 on a batch without tumor, whatever is predicted there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bce = nn.BCEWithLogitsLoss()
        self.dice = smp.losses.DiceLoss("binary")

    def forward(self, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Return the loss of logits and masks, both (N, S, S) float32."""
        loss: torch.Tensor = (self.bce(logits, masks) + self.dice(logits, masks)) / 2
        return loss


def make_loss(name: Loss) -> nn.Module:
    """Return a loss of logits and masks, both (N, S, S) float32."""
    if name == "bce_dice":
        return BCEDiceLoss()
    if name == "bce":
        return nn.BCEWithLogitsLoss()
    losses = {"dice": smp.losses.DiceLoss, "focal": smp.losses.FocalLoss}
    chosen: nn.Module = losses[name]("binary")
    return chosen


def make_schedule(
    name: Schedule, optimizer: torch.optim.Optimizer, *, highest: float, n_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a schedule of the learning rate over `n_steps` steps that never exceeds `highest`."""
    if name == "one_cycle":
        # The cycle divides by the length of its parts, the shorter one 30 % of the steps.
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, highest, max(n_steps, 10))
    if name == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n_steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def n_trained(network: nn.Module) -> int:
    """Return how many of a network's parameters are trained."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@dataclass(frozen=True)
class Trainer:
    """A network and all that changes its weights."""

    fabric: Fabric
    network: nn.Module
    compute: nn.Module  # the network in its precision, one of several processes where there are
    loss_function: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler


def make_trainer(
    fabric: Fabric,
    network: Network,
    *,
    loss: Loss,
    learning_rate: float,
    weight_decay: float,
    schedule: Schedule,
    n_steps: int,
    compiled: bool,
) -> Trainer:
    """Return a trainer of `n_steps` steps; only parameters that require a gradient are trained."""
    network.to(memory_format=torch.channels_last)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        # It exists on GPUs alone.
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    if compiled:
        network.compile()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    adamw = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, fused=True)
    rates = make_schedule(schedule, adamw, highest=learning_rate, n_steps=n_steps)
    compute, optimizer = fabric.setup(network, adamw)
    return Trainer(fabric, network, compute, make_loss(loss), optimizer, rates)


@dataclass
class Best:
    """The epoch of the highest validation IoU so far, the first of equals, and its tensors."""

    epoch: int = 0
    iou: float = -1.0
    tensors: Tensors = field(default_factory=dict)

    def update(self, epoch: int, iou: float, network: Network) -> None:
        """Keep the network's tensors if its IoU is the highest so far."""
        if iou > self.iou:
            self.epoch, self.iou, self.tensors = epoch, iou, network.trained_tensors()


def log_epoch(live: Live, epoch: int, train_scores: dict[str, float], val_iou: float) -> None:
    """Add a point to each curve."""
    live.step = epoch
    for name, value in train_scores.items():
        live.log_metric(f"train/{name}", round(value, DECIMALS))
    live.log_metric("val/iou", round(val_iou, DECIMALS))
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


def train_epoch(trainer: Trainer, batches: "DataLoader[Batch]", *, epoch: int) -> dict[str, float]:
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
        "loss": (loss_sum / n_losses).item(),
        "iou": float(iou(tp, n_predicted - tp, n_reference - tp)),
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
        batch_size=batch_size,
        workers=workers,
        title="val",
    )
    counts = overlap_counts(predictions, threshold=0.5)[["tp", "fp", "fn"]].sum()
    return float(iou(*total(fabric, torch.tensor(counts.tolist(), dtype=torch.int64))))


def select(splits: Path, split: str) -> list[str]:
    """Return the ids of a split's slices in the order of the table; refuse an empty split."""
    table = read_manifest(splits)
    slice_ids = table.loc[table["split"] == split, "slice_id"].tolist()
    if not slice_ids:
        raise Refusal(f"{splits}: no slice in {split}; `dvc repro split`")
    return slice_ids


def main(
    images: Path,
    masks: Path,
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
    augment: Augment,
    compute_device: Device,
    compute_precision: Precision,
    compute_compile: bool,
    compute_workers: Workers,
) -> None:
    fabric = make_fabric(compute_device, compute_precision)
    if batch_size % fabric.world_size:
        raise Refusal(
            f"train.batch_size is {batch_size}, which {fabric.world_size} processes cannot share "
            "evenly; take a multiple of their number"
        )
    train_ids, val_ids = select(splits, "train"), select(splits, "val")
    dataset = SliceDataset(
        images,
        masks,
        train_ids,
        image_size=image_size,
        augment=augmentation(**augment),
        seed=seed,
    )
    order = BatchOrder(
        len(dataset), batch_size, seed=seed, rank=fabric.global_rank, world_size=fabric.world_size
    )
    batches = loader(dataset, order, workers=compute_workers)

    torch.manual_seed(seed)
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
    )
    writes = fabric.is_global_zero  # fabric.print would speak once for each machine
    if writes:
        print(
            f"{len(dataset)} slices, {len(order)} steps of {batch_size} an epoch, "
            f"{n_trained(network):,} parameters trained, "
            f"on {fabric.world_size} × {fabric.device.type} in {precision_name(fabric)}"
        )

    best = Best()
    with Live(str(metrics), dvcyaml=None, save_dvc_exp=False) if writes else nullcontext() as live:
        for epoch in range(1, epochs + 1):
            order.epoch, begin = epoch, time.perf_counter()
            train_scores = train_epoch(trainer, batches, epoch=epoch)
            images_per_s = len(order) * batch_size / (time.perf_counter() - begin)
            average_statistics(fabric, network)
            val_iou = validate(
                fabric,
                trainer.compute,
                images,
                masks,
                val_ids,
                image_size=image_size,
                batch_size=batch_size,
                workers=compute_workers,
            )
            best.update(epoch, val_iou, network)
            if live:
                log_epoch(live, epoch, train_scores, val_iou)
                print(
                    f"epoch {epoch}/{epochs}: loss {train_scores['loss']:.4f}, "
                    f"IoU {train_scores['iou']:.4f} train, {val_iou:.4f} val, "
                    f"{images_per_s:.1f} images/s"
                )
        if live:
            live.summary["best"] = {"epoch": best.epoch, "val_iou": round(best.iou, DECIMALS)}
    if writes:
        header = Model(encoder_name, file_sha256(encoder), encoder_frozen, image_size)
        with replacing(unet) as [partial]:
            save_tensors(best.tensors, header, partial)


if __name__ == "__main__":
    run(
        main,
        "seed",
        "encoder.name",
        "encoder.frozen",
        "train",
        "compute.device",
        "compute.precision",
        "compute.compile",
        "compute.workers",
    )
