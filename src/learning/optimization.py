"""A network and all that changes its weights: loss, optimizer and schedule."""

from dataclasses import dataclass
from typing import Literal

import segmentation_models_pytorch as smp
import torch
from lightning_fabric import Fabric
from torch import nn

from learning.network import Network

Loss = Literal["bce_dice", "bce", "dice", "focal"]
Schedule = Literal["one_cycle", "cosine", "constant"]


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
    name: Schedule, optimizer: torch.optim.Optimizer, *, n_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return a schedule over `n_steps` steps that never exceeds a group's learning rate."""
    if name == "one_cycle":
        highest = [group["lr"] for group in optimizer.param_groups]
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
    thaws: bool = False,
    encoder_rate: float = 1.0,
) -> Trainer:
    """Return a trainer of `n_steps` steps; only parameters that require a gradient are trained.

    The encoder, where it learns or `thaws` later, has the learning rate times `encoder_rate`.
    """
    network.to(memory_format=torch.channels_last)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        # It exists on GPUs alone.
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    if compiled:
        network.compile()
    encoder = list(network.unet.encoder.parameters())
    others = [*network.unet.decoder.parameters(), *network.unet.segmentation_head.parameters()]
    groups = [{"params": others, "lr": learning_rate}]
    if thaws or not network.frozen:  # what has no gradient yet, AdamW leaves alone
        groups.append({"params": encoder, "lr": encoder_rate * learning_rate})
    adamw = torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)
    rates = make_schedule(schedule, adamw, n_steps=n_steps)
    compute, optimizer = fabric.setup(network, adamw)
    return Trainer(fabric, network, compute, make_loss(loss), optimizer, rates)
