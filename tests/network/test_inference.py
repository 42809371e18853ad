"""Prediction by networks with known outputs: each slice once, at its original size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from helpers import SIZE, Data, PresetNetwork, Stub, predicted, rows_of, section
from learning.epochs import validate
from learning.inference import fitted_logits
from learning.network import Context, Network
from learning.params import TrainParams
from learning.weights import new_network
from pipeline.refusals import Refusal
from scans.fitted import FittedSlices, Slices
from scans.manifest import read_manifest
from scans.names import slice_path
from scans.normalization import NONE
from scans.tiff import read_mask


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_slice_is_predicted_once_and_in_order_with_any_batch_size(
    data: Data, batch_size: int
) -> None:
    ids = read_manifest(data.splits)["slice_id"].tolist()[:40:2]
    masks = [read_mask(slice_path(data.masks, slice_id)) for slice_id in ids]
    outputs = predicted(PresetNetwork(masks, 64), data, ids[::-1], batch_size=batch_size)
    assert list(outputs) == ids
    for logits, mask in zip(outputs.values(), masks, strict=True):
        np.testing.assert_array_equal(logits, np.where(mask, 5.0, -5.0))


def test_logits_are_resized_before_the_threshold(data: Data) -> None:
    """Bilinear resizing of a ±5 checkerboard gives values in between; no other order does."""
    ids = read_manifest(data.splits)["slice_id"].tolist()[:1]
    half = np.indices((24, 24)).sum(axis=0) % 2 == 0
    [logits] = predicted(PresetNetwork([half], 32), data, ids, image_size=24, batch_size=1).values()
    assert logits.shape == (SIZE, SIZE)
    assert set(np.unique(np.abs(logits))) == {1.25, 2.5, 5.0}


def test_an_output_that_is_not_finite_is_an_error(data: Data) -> None:
    ids = read_manifest(data.splits)["slice_id"].tolist()[:2]

    class Diverged(Stub):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 64, 64), torch.nan)

    with pytest.raises(Refusal, match=f"{ids[0]} .*not finite"):
        predicted(Diverged(), data, ids, batch_size=1)


@pytest.fixture
def network(encoder: Path) -> Network:
    """Return a network with context whose output depends on neighboring slices."""
    network = new_network(encoder, name="mobilenet_v2", frozen=True, context=1).eval()
    for level in network.context:
        if isinstance(level, Context):
            nn.init.normal_(level.up.weight, std=0.05)
    return network


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_volumes_with_context_are_predicted_like_single_slices(
    data: Data, network: Network, batch_size: int, tmp_path: Path
) -> None:
    """Of three patients, one has a gap; the encoder sees each slice once."""
    table = read_manifest(data.splits)
    chosen = table[table["patient_id"].isin(sorted(set(table["patient_id"]))[:3])]
    slices = Slices(chosen.drop(chosen.index[7:9]))
    fitted = FittedSlices(slices, image_size=32, normalization=NONE, folder=tmp_path)
    images = torch.from_numpy(np.array(fitted.images))
    before, after = slices.neighbors.T
    n_seen: list[int] = []
    encoder = network.used_encoder
    network.used_encoder = nn.Identity()
    network.used_encoder.forward = lambda x: n_seen.append(len(x)) or encoder(x)  # type: ignore[func-returns-value]
    with torch.inference_mode():
        stacks = torch.stack([images[before], images, images[after]], dim=1)
        expected = network(stacks)
        n_seen.clear()
        fabric = Fabric(accelerator="cpu", devices=1)
        batches = (torch.from_numpy(batch.images) for batch in fitted.batches(batch_size))
        found = torch.cat(list(fitted_logits(fabric, network, batches, slices.neighbors)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    assert sum(n_seen) == len(slices)
    assert (before == np.arange(len(slices))).sum() == 4  # three volumes, and the gap


def test_flips_average_the_logits_of_a_slice_and_of_its_mirror_image(
    data: Data, network: Network
) -> None:
    ids = read_manifest(data.splits)["slice_id"].tolist()[:20]

    class Mirror(Stub):
        context = network.context  # type: ignore[assignment]

        def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
            return network.encode(images.flip(2))

        def decode(self, features: list[torch.Tensor]) -> torch.Tensor:
            return network.decode(features).flip(2)

    plain, mirrored, averaged = (
        np.stack(list(predicted(net, data, ids, image_size=32, flips=flips).values()))
        for net, flips in ((network, False), (Mirror(), False), (network, True))
    )
    assert np.abs(plain - mirrored).max() > 0.01
    np.testing.assert_allclose(averaged, (plain + mirrored) / 2, atol=1e-3)


def validated(network: nn.Module, data: Data, slice_ids: list[str], folder: Path) -> float:
    """Return the IoU of a network's predictions for slices of the phantom."""
    fitted = FittedSlices(
        Slices(rows_of(data, slice_ids)),
        image_size=SIZE,
        normalization=NONE,
        folder=folder,
        keep_original_masks=True,
    )
    train = section(TrainParams, image_size=SIZE, batch_size=2)

    class TrainerStub:
        fabric = Fabric(accelerator="cpu", devices=1)

    trainer = TrainerStub()
    trainer.network = network  # type: ignore[attr-defined]
    return validate(trainer, fitted, train)  # type: ignore[arg-type]


def test_validation_is_the_micro_iou_of_all_slices(
    data: Data, masks: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """One prediction has an extra pixel, and one is the reference of another slice."""
    ids = read_manifest(data.splits).query("abnormal == 1")["slice_id"].tolist()[:3]
    references = [masks[slice_id] for slice_id in ids]
    predictions = [references[0].copy(), references[2], references[2]]
    predictions[0][0, 0] = True
    pairs = list(zip(predictions, references, strict=True))
    fp = sum((prediction & ~reference).sum() for prediction, reference in pairs)
    fn = sum((reference & ~prediction).sum() for prediction, reference in pairs)
    tp = sum((reference & prediction).sum() for prediction, reference in pairs)
    assert fp != fn
    found = validated(PresetNetwork(predictions, 64), data, ids, tmp_path)
    assert found == pytest.approx(tp / (tp + fp + fn))


@pytest.mark.parametrize(("logit", "is_tumor"), [(0.1, True), (0.0, False), (-0.1, False)])
def test_validation_counts_a_probability_above_one_half_as_tumor(
    data: Data, tmp_path: Path, logit: float, is_tumor: bool
) -> None:
    class Constant(Stub):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.full((len(images), 64, 64), logit)

    rows = read_manifest(data.splits).query("abnormal == 1").head(1)
    found = validated(Constant(), data, rows["slice_id"].tolist(), tmp_path)
    assert found == pytest.approx(rows["tumor_area"].item() / SIZE**2 if is_tumor else 0)
