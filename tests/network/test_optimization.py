"""Losses and learning-rate schedules, compared with values calculated by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from learning.optimization import make_loss, make_schedule
from learning.params import Schedule


def test_bce_dice_learns_on_a_batch_without_tumor() -> None:
    """Dice loss alone has no gradient there."""
    masks = torch.zeros(2, 8, 8)
    for name, learns in (("dice", False), ("bce_dice", True), ("bce", True), ("focal", True)):
        logits = torch.ones(2, 8, 8, requires_grad=True)
        make_loss(name)(logits, masks).backward()  # type: ignore[arg-type]
        assert logits.grad is not None
        assert bool(logits.grad.any()) is learns


def test_bce_dice_by_hand() -> None:
    logits, masks = torch.zeros(1, 1, 4), torch.tensor([[[1.0, 0, 0, 0]]])
    bce, dice = np.log(2), 1 - 2 * 0.5 / (2 + 1)
    assert make_loss("bce_dice")(logits, masks).item() == pytest.approx((bce + dice) / 2)


@pytest.mark.parametrize(
    ("name", "first", "last"), [("one_cycle", 1 / 25, 0), ("cosine", 1, 0), ("constant", 1, 1)]
)
@pytest.mark.parametrize("n_steps", [1, 2, 30])
def test_schedules_begin_and_end_at_the_right_learning_rate(
    name: Schedule, first: float, last: float, n_steps: int
) -> None:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = make_schedule(name, optimizer, n_steps=n_steps)
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.01 * first)
    assert max(rates) <= 0.01 * (1 + 1e-9)
    if n_steps == 30:
        assert rates[-1] == pytest.approx(0.01 * last, abs=1e-4)
    assert optimizer.param_groups[0]["betas"] == (
        0.9,
        0.999,
    )  # a CUDA graph stores them as constants
