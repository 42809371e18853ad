"""A network and all that changes its weights: loss, optimizer and schedule."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import segmentation_models_pytorch as smp
import torch
from lightning_fabric import Fabric
from torch import nn

from learning.network import Network
from learning.params import Loss, Schedule, TrainParams


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
    losses: dict[str, Callable[[], nn.Module]] = {
        "bce_dice": BCEDiceLoss,
        "bce": nn.BCEWithLogitsLoss,
        "dice": partial(smp.losses.DiceLoss, "binary"),
        "focal": partial(smp.losses.FocalLoss, "binary"),
    }
    return losses[name]()


def make_schedule(
    name: Schedule, optimizer: torch.optim.Optimizer, *, n_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a schedule over `n_steps` steps that never exceeds a group's learning rate.

    It changes the learning rate alone: momentum stays as it is.
    """
    if name == "one_cycle":
        highest = [float(group["lr"]) for group in optimizer.param_groups]
        # The cycle divides by the length of its parts, the shorter one 30 % of the steps.
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, highest, max(n_steps, 10), cycle_momentum=False
        )
    if name == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n_steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def n_trained(network: nn.Module) -> int:
    """Return how many of a network's parameters are trained."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


class Average:
    """The exponential moving average of a network's trained parameters; none where `decay` is 0.

    After n steps the decay is at most (1 + n) / (10 + n), so that the initial weights do not weigh
    on a short training. Batch norm's running statistics are averages already, and stay those of
    the last step.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.n_steps = decay, 0
        self.parameters: list[torch.Tensor] = []
        if decay:
            self.parameters += [each for each in network.parameters() if each.requires_grad]
        self.averages = [each.detach().clone() for each in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters after a step into the average."""
        if self.decay:
            self.n_steps += 1
            decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
            torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the network have the averages for its parameters within the block."""
        with torch.no_grad():
            own = [each.detach().clone() for each in self.parameters]
            for parameter, average in zip(self.parameters, self.averages, strict=True):
                parameter.copy_(average)
            yield
            for parameter, before in zip(self.parameters, own, strict=True):
                parameter.copy_(before)


@dataclass(frozen=True)
class Trainer:
    """A network and all that changes its weights: what a step of training needs."""

    fabric: Fabric
    network: Network
    wrapped: nn.Module  # the network in its precision, shared with other processes if there are any
    loss_function: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: Average
    pixels: torch.Tensor  # of an epoch so far: P ∩ R, P, R, with prediction and reference


def make_trainer(
    fabric: Fabric, network: Network, train: TrainParams, *, n_steps: int, compiled: bool
) -> Trainer:
    """Return a trainer of `n_steps` steps; only parameters that require a gradient are trained.

    The encoder, where it learns, has the learning rate times `encoder_rate`.
    """
    network.to(memory_format=torch.channels_last)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        # It exists on GPUs alone.
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    if compiled:
        network.compile()
    encoder = list(network.unet.encoder.parameters())
    others = [
        *network.unet.decoder.parameters(),
        *network.unet.segmentation_head.parameters(),
        *network.context.parameters(),
    ]
    on_gpu = fabric.device.type == "cuda"

    def rate(value: float) -> float | torch.Tensor:
        return torch.tensor(value, device=fabric.device) if on_gpu else value  # for a CUDA graph

    groups: list[dict[str, Any]] = [{"params": others, "lr": rate(train.learning_rate)}]
    if not network.frozen:
        encoder_rate = rate(train.encoder_rate * train.learning_rate)
        groups.append({"params": encoder, "lr": encoder_rate})
    adamw = torch.optim.AdamW(
        groups, weight_decay=train.weight_decay, fused=True, capturable=on_gpu
    )
    schedule = make_schedule(train.schedule, adamw, n_steps=n_steps)
    wrapped, optimizer = fabric.setup(network, adamw)
    average = Average(network, train.average)
    pixels = torch.zeros(3, dtype=torch.int64, device=fabric.device)
    loss = make_loss(train.loss)
    return Trainer(fabric, network, wrapped, loss, optimizer, schedule, average, pixels)
