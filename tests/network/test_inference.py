"""Prediction by a network whose every answer is known: each slice once, at its own size."""

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from conftest import SIZE, Data, Told, predicted
from learning.epochs import validate
from learning.slice_dataset import SliceDataset
from pipeline.refusals import Refusal
from scans.manifest import read_manifest
from scans.names import slice_path
from scans.tiff import read_mask


@pytest.mark.parametrize("workers", [0, 2])
def test_every_slice_comes_once_in_order_whatever_the_batch(data: Data, workers: int) -> None:
    ids = read_manifest(data.splits)["slice_id"].tolist()[:40:2][::-1]
    masks = [read_mask(slice_path(data.masks, slice_id)) for slice_id in ids]
    predictions = list(predicted(Told(masks, 64), data, ids, batch_size=3, workers=workers))
    assert [prediction.slice_id for prediction in predictions] == ids
    for prediction, mask in zip(predictions, masks, strict=True):
        np.testing.assert_array_equal(prediction.mask, mask)
        np.testing.assert_array_equal(prediction.logits, np.where(mask, 5.0, -5.0))


def test_logits_are_resized_before_the_threshold(data: Data) -> None:
    """Between the fields of a checkerboard of ±5 bilinear values lie: no other order has them."""
    ids = read_manifest(data.splits)["slice_id"].tolist()[:1]
    half = np.indices((24, 24)).sum(axis=0) % 2 == 0
    [prediction] = predicted(Told([half], 32), data, ids, image_size=24, batch_size=1)
    assert prediction.logits.shape == (SIZE, SIZE)
    assert set(np.unique(np.abs(prediction.logits))) == {1.25, 2.5, 5.0}


def test_an_answer_that_is_not_finite_is_refused(data: Data) -> None:
    ids = read_manifest(data.splits)["slice_id"].tolist()[:2]

    class Diverged(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 64, 64), torch.nan)

    predictions = predicted(Diverged(), data, ids, batch_size=1)
    with pytest.raises(Refusal, match=f"answer for slice {ids[0]} is not finite"):
        list(predictions)


def test_validation_is_the_micro_iou_of_all_slices(
    data: Data, masks: dict[str, np.ndarray]
) -> None:
    """Of two answers one has a pixel too many, and one is the reference of another slice."""
    rows = read_manifest(data.splits).query("abnormal == 1").head(3)
    references = [masks[slice_id] for slice_id in rows["slice_id"]]
    answers = [references[0].copy(), references[2], references[2]]
    answers[0][0, 0] = True
    wrong = [(answer & ~mask).sum() for answer, mask in zip(answers, references, strict=True)]
    missed = [(mask & ~answer).sum() for answer, mask in zip(answers, references, strict=True)]
    right = [(mask & answer).sum() for answer, mask in zip(answers, references, strict=True)]
    assert sum(wrong) != sum(missed)
    found = validate(
        Fabric(accelerator="cpu", devices=1),
        Told(answers, 64),
        SliceDataset(rows, image_size=SIZE),
        batch_size=2,
        workers=0,
    )
    assert found == pytest.approx(sum(right) / (sum(right) + sum(wrong) + sum(missed)))


@pytest.mark.parametrize(("logit", "wanted"), [(0.1, True), (0.0, False), (-0.1, False)])
def test_validation_takes_a_probability_above_one_half_for_tumor(
    data: Data, logit: float, wanted: bool
) -> None:
    class Constant(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 64, 64), logit)

    rows = read_manifest(data.splits).query("abnormal == 1").head(1)
    dataset, fabric = SliceDataset(rows, image_size=SIZE), Fabric(accelerator="cpu", devices=1)
    found = validate(fabric, Constant(), dataset, batch_size=1, workers=0)
    assert found == pytest.approx(rows["tumor_area"].item() / SIZE**2 if wanted else 0)
