"""Loss, optimizer, learning-rate schedule and moving average: everything that changes weights."""

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

    Dice loss alone is 0 on a batch without tumor, whatever the prediction.
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

    It changes only the learning rate, not the momentum.
    """
    if name == "one_cycle":
        highest = [float(group["lr"]) for group in optimizer.param_groups]
        # OneCycleLR divides by the length of its phases, and the shorter one is 30 % of the steps.
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, highest, max(n_steps, 10), cycle_momentum=False
        )
    if name == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=n_steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def n_trained(network: nn.Module) -> int:
    """Return the number of trained parameters."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


class MovingAverage:
    """The exponential moving average of a network's trained parameters; unused if `decay` is 0.

    After n steps, the decay is at most (1 + n) / (10 + n), so that the initial weights do not
    dominate a short training. Batch norm's running statistics are averages already; the network
    keeps those of the last step.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.n_steps = decay, 0
        self.parameters: list[torch.Tensor] = []
        if decay:
            self.parameters += [p for p in network.parameters() if p.requires_grad]
        self.averages = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Update the average with the parameters after a step."""
        if self.decay:
            self.n_steps += 1
            decay = min(self.decay, (1 + self.n_steps) / (10 + self.n_steps))
            torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Use the averages as the network's parameters within the block."""
        with torch.no_grad():
            current = [p.detach().clone() for p in self.parameters]
            for parameter, average in zip(self.parameters, self.averages, strict=True):
                parameter.copy_(average)
            yield
            for parameter, saved in zip(self.parameters, current, strict=True):
                parameter.copy_(saved)


@dataclass(frozen=True)
class Trainer:
    """Everything that a training step needs: the network and what changes its weights."""

    fabric: Fabric
    network: Network
    wrapped: nn.Module  # the network in its precision and, if distributed, synchronized
    loss_function: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: MovingAverage
    pixels: torch.Tensor  # counts in this epoch so far: P ∩ R, P, R of prediction P and reference R


def make_trainer(
    fabric: Fabric, network: Network, train: TrainParams, *, n_steps: int, compiled: bool
) -> Trainer:
    """Return a trainer for `n_steps` steps; only parameters that require a gradient are trained.

    If the encoder is trained, its learning rate is multiplied by `encoder_rate`.
    """
    network.to(memory_format=torch.channels_last)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        # Synchronized batch norm supports only GPUs.
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    if compiled:
        network.compile()
    encoder = list(network.unet.encoder.parameters())
    after_encoder = [
        *network.unet.decoder.parameters(),
        *network.unet.segmentation_head.parameters(),
        *network.context.parameters(),
    ]
    on_gpu = fabric.device.type == "cuda"

    def rate(value: float) -> float | torch.Tensor:
        return torch.tensor(value, device=fabric.device) if on_gpu else value  # for a CUDA graph

    groups: list[dict[str, Any]] = [{"params": after_encoder, "lr": rate(train.learning_rate)}]
    if not network.frozen:
        encoder_rate = rate(train.encoder_rate * train.learning_rate)
        groups.append({"params": encoder, "lr": encoder_rate})
    adamw = torch.optim.AdamW(
        groups, weight_decay=train.weight_decay, fused=True, capturable=on_gpu
    )
    schedule = make_schedule(train.schedule, adamw, n_steps=n_steps)
    wrapped, optimizer = fabric.setup(network, adamw)
    average = MovingAverage(network, train.average)
    pixels = torch.zeros(3, dtype=torch.int64, device=fabric.device)
    loss = make_loss(train.loss)
    return Trainer(fabric, network, wrapped, loss, optimizer, schedule, average, pixels)
