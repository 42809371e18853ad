"""One epoch: a pass over the train slices, and the validation after it."""

from collections import Counter

import torch
from lightning_fabric import Fabric
from torch import nn
from tqdm import tqdm

from learning.batches import Loader
from learning.device import total
from learning.inference import predict_slices
from learning.optimization import Trainer
from learning.params import Workers
from learning.slice_dataset import SliceDataset
from pipeline.refusals import Refusal
from scoring.overlap import count_pixels, iou


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
    trainer.wrapped.train()
    losses, slice_ids = [], []
    pixels = torch.zeros(3, dtype=torch.int64, device=fabric.device)  # P ∩ R, P, R
    quiet = None if fabric.is_global_zero else True  # None: shown in a terminal alone
    for batch in tqdm(batches, desc=f"epoch {epoch}", unit="batch", leave=False, disable=quiet):
        images = batch.images.to(fabric.device, non_blocking=True)
        masks = batch.masks.to(fabric.device, non_blocking=True)
        logits = trainer.wrapped(images)
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
    fabric: Fabric, network: nn.Module, dataset: SliceDataset, *, batch_size: int, workers: Workers
) -> float:
    """Return the micro IoU over slices at their own sizes: those of all processes together."""
    counts: Counter[str] = Counter()
    for _, logits, mask in predict_slices(
        network, dataset, device=fabric.device, batch_size=batch_size, workers=workers, title="val"
    ):
        counts.update(count_pixels(logits > 0, mask))
    tp, fp, fn = total(fabric, torch.tensor([counts[name] for name in ("tp", "fp", "fn")]))
    return float(iou(tp, fp, fn))
