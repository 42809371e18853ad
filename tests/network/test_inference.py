"""Prediction by a network whose every answer is known: each slice once, at its own size."""

import numpy as np
import pytest
import torch
from torch import nn

from conftest import SIZE, Data, Told, predicted
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
