"""One epoch: training on all train slices, then validation."""

from collections import Counter
from collections.abc import Callable, Iterable

import torch
from lightning_fabric import Fabric
from torch import nn
from tqdm import tqdm

from learning.batches import TrainBatch
from learning.device import sum_over_processes
from learning.inference import predict_slices
from learning.optimization import Trainer
from learning.params import TrainParams
from pipeline.refusals import Refusal
from scans.fitted import FittedSlices
from scoring.overlap import count_pixels, iou

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # from images and masks to the loss


def check_losses(losses: torch.Tensor, slice_ids: list[list[str]], *, epoch: int) -> None:
    """Raise an error that names the first step whose loss is not finite, and its slices."""
    bad = torch.nonzero(~torch.isfinite(losses))
    if len(bad):
        step = int(bad[0])
        raise Refusal(
            f"the loss is {losses[step].item()} in epoch {epoch}, step {step + 1} of {len(losses)},"
            f" slices {', '.join(slice_ids[step])}; try a lower train.learning_rate, or "
            "compute.precision: 32-true"
        )


def take_step(trainer: Trainer, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Train on a batch, add its pixel counts to `trainer.pixels`, and return the loss.

    Nothing here waits for the device or copies data to it.
    """
    logits = trainer.wrapped(images)
    loss: torch.Tensor = trainer.loss_function(logits, masks.float())
    trainer.fabric.backward(loss)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    predicted, reference = logits.detach() > 0, masks.bool()
    counts = [(predicted & reference).sum(), predicted.sum(), reference.sum()]
    trainer.pixels.add_(torch.stack(counts))
    return loss.detach()


def train_epoch(
    trainer: Trainer, batches: Iterable[TrainBatch], step: Step, *, epoch: int
) -> dict[str, float]:
    """Train on all batches; return the mean loss of the steps and the micro IoU.

    `step` trains on the images and masks of a batch and returns the loss, like take_step.

    Both scores are of the augmented slices of all processes, predicted before the step that trains
    on them. Nothing waits for the device within the epoch, so a loss that is not finite raises an
    error only at its end.
    """
    fabric = trainer.fabric
    trainer.wrapped.train()
    trainer.pixels.zero_()
    losses, slice_ids = [], []
    quiet = None if fabric.is_global_zero else True  # None: show only in a terminal
    for batch in tqdm(batches, desc=f"epoch {epoch}", unit="batch", leave=False, disable=quiet):
        images = batch.images.to(fabric.device, non_blocking=True)
        masks = batch.masks.to(fabric.device, non_blocking=True)
        losses.append(step(images, masks))
        trainer.average.update()
        trainer.schedule.step()
        slice_ids.append(batch.slice_ids)
    steps = torch.stack(losses).cpu().double()
    check_losses(steps, slice_ids, epoch=epoch)
    sums = torch.stack([steps.sum(), torch.tensor(len(steps))])
    loss_sum, n_losses = sum_over_processes(fabric, sums)
    tp, n_predicted, n_reference = sum_over_processes(fabric, trainer.pixels).tolist()
    return {
        "train/loss": (loss_sum / n_losses).item(),
        "train/iou": float(iou(tp, n_predicted - tp, n_reference - tp)),
    }


def average_batch_norm(fabric: Fabric, network: nn.Module) -> None:
    """Average batch-norm statistics over the processes, unless they are synchronized already."""
    learning = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
    for buffer in (buffer for module in learning for buffer in module.buffers()):
        if buffer.is_floating_point() and fabric.world_size > 1:
            buffer.copy_(sum_over_processes(fabric, buffer) / fabric.world_size)


def validate(trainer: Trainer, fitted: FittedSlices, train: TrainParams) -> float:
    """Return the micro IoU of the slices of all processes, at their original sizes."""
    counts: Counter[str] = Counter()
    predictions = predict_slices(
        trainer.fabric,
        trainer.network,
        fitted.batches(train.batch_size),
        fitted.slices,
        image_size=train.image_size,
    )
    for position, logits in enumerate(predictions):
        counts.update(count_pixels(logits > 0, fitted.original_mask(position)))
    counted = torch.tensor([counts[name] for name in ("tp", "fp", "fn")])
    tp, fp, fn = sum_over_processes(trainer.fabric, counted)
    return float(iou(tp, fp, fn))
