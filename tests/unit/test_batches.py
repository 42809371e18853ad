"""Slices as the network takes them."""

import itertools
import os
import signal
from multiprocessing import connection
from pathlib import Path

import albumentations
import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import dataloader

from conftest import SIZE, Data, section
from learning.augmentation import augmentation
from learning.batches import Batch, BatchOrder, loader
from learning.params import AugmentParams
from learning.slice_dataset import SliceDataset, fit, padded_size, unfit
from scans.manifest import read_manifest
from scans.names import slice_path
from scans.tiff import read_image, read_mask

STRONG = {"flip": True, "rotate": 90.0, "scale": 0.3, "translate": 0.2}
LIGHT = {"brightness": 0.3, "contrast": 0.3, "gamma": 0.3, "gain": 0.3, "missing": 0.3}
NOTHING = dict.fromkeys([*STRONG, *LIGHT], 0.0) | {"flip": False}


def augmenting(**strength: float) -> albumentations.Compose:
    return augmentation(section(AugmentParams, **NOTHING | strength))


def slice_ids(data: Data, n_slices: int = 24) -> list[str]:
    return read_manifest(data.manifest)["slice_id"].tolist()[:n_slices]


def make_dataset(data: Data, augment: albumentations.Compose | None = None) -> SliceDataset:
    slices = read_manifest(data.manifest).head(24)
    return SliceDataset(slices, image_size=SIZE, augment=augment, seed=3)


@pytest.mark.parametrize(
    ("height", "width", "image_size", "padded"),
    [
        (256, 256, 256, 256),
        (256, 256, 128, 128),
        (48, 40, 250, 256),
        (31, 90, 64, 64),
        (5, 1, 32, 32),
    ],
)
def test_a_slice_is_fitted_and_comes_back_at_its_own_size(
    height: int, width: int, image_size: int, padded: int
) -> None:
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = (120 + 60 * np.sin(rows / height * 3) + 50 * columns / width).astype(np.uint8)
    fitted = fit(smooth, image_size, cv2.INTER_LINEAR)
    assert fitted.shape == (padded, padded) == (padded_size(image_size),) * 2
    back = unfit(torch.from_numpy(fitted).float(), height, width, image_size).numpy()
    assert back.shape == (height, width)
    assert np.abs(back - smooth).mean() < 3


def test_nothing_is_lost_where_the_size_fits(data: Data) -> None:
    """A slice of the network's size is padded and cropped back, its pixels untouched."""
    for slice_id in slice_ids(data, 3):
        image = read_image(slice_path(data.images, slice_id))
        fitted = fit(image, SIZE, cv2.INTER_LINEAR)
        assert fitted.shape == (64, 64, 3)
        np.testing.assert_array_equal(fitted[:SIZE, :SIZE], image)
        assert not fitted[SIZE:].any()
        assert not fitted[:, SIZE:].any()
        channel = torch.from_numpy(fitted[..., 1])
        np.testing.assert_array_equal(unfit(channel, SIZE, SIZE, SIZE), image[..., 1])


def gather(dataset: SliceDataset, *, workers: int, epoch: int) -> list[Batch]:
    order = BatchOrder(len(dataset), 8, seed=3)
    order.epoch = epoch
    return list(loader(dataset, order, workers=workers))


def test_the_number_of_workers_changes_nothing_and_the_epoch_everything(data: Data) -> None:
    dataset = make_dataset(data, augmenting(**STRONG, **LIGHT))
    alone, helped, later = (
        gather(dataset, workers=workers, epoch=epoch) for workers, epoch in ((0, 4), (2, 4), (0, 5))
    )
    for one, two in zip(alone, helped, strict=True):
        assert one.slice_ids == two.slice_ids
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.masks, two.masks)
    ids = {slice_id for batch in alone for slice_id in batch.slice_ids}
    assert ids == {slice_id for batch in later for slice_id in batch.slice_ids}
    assert [batch.slice_ids for batch in alone] != [batch.slice_ids for batch in later]
    images = {s: i for batch in alone for s, i in zip(batch.slice_ids, batch.images, strict=True)}
    for batch in later:
        for slice_id, image in zip(batch.slice_ids, batch.images, strict=True):
            assert not torch.equal(images[slice_id], image)


def test_workers_follow_the_epoch(data: Data) -> None:
    """Workers that persist must not repeat the first epoch's augmentation."""
    dataset = make_dataset(data, augmenting(**STRONG, **LIGHT))
    order = BatchOrder(len(dataset), 8, seed=3)
    batches = loader(dataset, order, workers=1)
    first = list(batches)
    order.epoch = 1
    second = list(batches)
    expected = gather(dataset, workers=0, epoch=1)
    assert not torch.equal(first[0].images, second[0].images)
    assert all(torch.equal(a.images, b.images) for a, b in zip(second, expected, strict=True))


@pytest.mark.parametrize(
    ("moment", "seed", "n_taken"),
    [
        ("__init__", 3, 0),  # workers start
        ("_next_data", 3, 0),  # they hand a batch over
        ("_shutdown_workers", None, 3),  # they stop
    ],
)
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_leaves_between_two_batches(
    data: Data, monkeypatch: pytest.MonkeyPatch, moment: str, seed: int | None, n_taken: int
) -> None:
    iterator = dataloader._MultiProcessingDataLoaderIter
    usual, calls = getattr(iterator, moment), itertools.count()
    taken: list[Batch] = []

    def pressed(*arguments: object) -> object:
        if next(calls) == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return usual(*arguments)

    monkeypatch.setattr(iterator, moment, pressed)
    dataset = make_dataset(data)
    batches = loader(dataset, BatchOrder(len(dataset), 8, seed=seed), workers=1)
    with pytest.raises(KeyboardInterrupt):
        taken.extend(batches)
    assert next(calls) > 0
    assert len(taken) == n_taken


def test_a_worker_says_nothing_of_a_batch_that_nobody_takes(
    data: Data, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its process of origin goes away while the two agree on who they are."""

    def go_away(*_: object) -> None:
        raise KeyboardInterrupt

    dataset = make_dataset(data)
    batches = iter(loader(dataset, BatchOrder(len(dataset), 8), workers=1))
    next(batches)
    monkeypatch.setattr(connection, "answer_challenge", go_away)
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert capfd.readouterr().err == ""


def test_scan_and_mask_move_together_and_the_mask_stays_binary(data: Data) -> None:
    augment = augmenting(**STRONG)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 10:30] = 1
    image = np.repeat(200 * mask[..., None], 3, axis=2)
    for seed in range(20):
        augment.set_random_seed(seed)
        moved = augment(image=image, mask=mask)
        assert set(np.unique(moved["mask"])) <= {0, 1}
        found = moved["image"][..., 0] > 100
        union = (found | moved["mask"].astype(bool)).sum()
        assert (found & moved["mask"].astype(bool)).sum() / union > 0.9


def test_light_changes_the_scan_alone() -> None:
    augment = augmenting(**LIGHT)
    augment.set_random_seed(1)
    image, mask = np.full((8, 8, 3), 100, np.uint8), np.eye(8, dtype=np.uint8)
    augmented = augment(image=image, mask=mask)
    assert not np.array_equal(augmented["image"], image)
    np.testing.assert_array_equal(augmented["mask"], mask)


def changed_by(seed: int, **strength: float) -> np.ndarray:
    """Return what an augmentation of that strength makes of a scan of three even sequences."""
    augment = augmenting(**strength)
    augment.set_random_seed(seed)
    scan = np.tile(np.array([50, 100, 150], dtype=np.uint8), (8, 8, 1))
    changed: np.ndarray = augment(image=scan, mask=scan[..., 0] * 0)["image"][0, 0]
    return changed


def test_gamma_is_an_exponent_of_all_sequences_and_gain_a_factor_of_each() -> None:
    scan = np.array([50, 100, 150])
    exponents, factors = [], []
    for seed in range(200):
        drawn = np.log(changed_by(seed, gamma=0.3) / 255) / np.log(scan / 255)
        assert np.ptp(drawn) < 0.03
        exponents.append(drawn.mean())
        factors.append(changed_by(seed, gain=0.2) / scan)
    assert 0.68 < min(exponents) < 0.75 < 1.25 < max(exponents) < 1.32
    gains = np.array(factors)
    assert 0.78 < gains.min() < 0.83 < 1.17 < gains.max() < 1.21
    assert np.abs(np.corrcoef(gains.T) - np.eye(3)).max() < 0.25


def test_a_missing_sequence_is_filled_with_flair_as_in_the_data_set() -> None:
    kinds = [tuple(changed_by(seed, missing=0.4)) for seed in range(400)]
    whole, no_post, flair_alone = (50, 100, 150), (50, 100, 100), (100, 100, 100)
    assert set(kinds) == {whole, no_post, flair_alone}
    assert kinds.count(whole) / 400 == pytest.approx(0.6, abs=0.06)
    assert kinds.count(no_post) / 400 == pytest.approx(0.2, abs=0.05)


def test_without_augmentation_slices_come_in_order_and_as_they_are(data: Data) -> None:
    dataset = make_dataset(data)
    batches = list(loader(dataset, BatchOrder(len(dataset), 7), workers=0))
    assert [len(batch.slice_ids) for batch in batches] == [7, 7, 7, 3]
    assert [slice_id for batch in batches for slice_id in batch.slice_ids] == slice_ids(data)
    for batch in batches:
        for position, slice_id in enumerate(batch.slice_ids):
            image = read_image(slice_path(data.images, slice_id))
            mask = read_mask(slice_path(data.masks, slice_id))
            np.testing.assert_array_equal(batch.images[position, :SIZE, :SIZE], image)
            np.testing.assert_array_equal(batch.masks[position, :SIZE, :SIZE], mask)
            np.testing.assert_array_equal(batch.own_masks[position], mask)


def test_a_shuffled_epoch_leaves_the_short_batch_out_unless_it_is_the_only_one() -> None:
    keys = [key for batch in BatchOrder(21, 8, seed=1) for key in batch]
    assert len(keys) == len(set(keys)) == 16
    assert [len(batch) for batch in BatchOrder(5, 8, seed=1)] == [5]


def test_importing_it_asks_the_network_for_nothing() -> None:
    source = Path(augmentation.__code__.co_filename).read_text()
    assert source.index("NO_ALBUMENTATIONS_UPDATE") < source.index("import albumentations")


@pytest.mark.parametrize(("share", "n_abnormal"), [(0.5, 20), (0.1, 4), (0.9, 36)])
def test_a_share_of_each_epoch_is_abnormal(share: float, n_abnormal: int) -> None:
    """Of 40 slices 10 are abnormal; those drawn more than once are drawn equally often."""
    abnormal = np.arange(40) % 4 == 0
    order = BatchOrder(40, 8, seed=1, abnormal=abnormal, abnormal_share=share)
    epochs = []
    for epoch in (0, 1):
        order.epoch = epoch
        keys = [key for batch in order for key in batch]
        assert len(set(keys)) == len(keys) == 40  # so that no two are augmented alike
        positions = [position for _, position, _ in keys]
        assert abnormal[positions].sum() == n_abnormal
        for kind in (abnormal, ~abnormal):
            times = np.bincount(positions, minlength=40)[kind]
            assert times.max() - times.min() <= 1
        before = [(position, n_before) for _, position, n_before in keys]
        assert all((position, n - 1) in before[:i] for i, (position, n) in enumerate(before) if n)
        epochs.append(positions)
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) != epochs[0]


def test_all_are_drawn_once_where_all_are_abnormal() -> None:
    order = BatchOrder(16, 8, seed=1, abnormal=np.ones(16, dtype=bool), abnormal_share=0.5)
    assert sorted(key for batch in order for key in batch) == [(0, each, 0) for each in range(16)]


def test_a_slice_drawn_again_is_augmented_anew(data: Data) -> None:
    dataset = make_dataset(data, augmenting(**STRONG, **LIGHT))
    abnormal = np.arange(len(dataset)) < 3
    order = BatchOrder(len(dataset), 8, seed=3, abnormal=abnormal, abnormal_share=0.5)
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in loader(dataset, order, workers=0):
        for slice_id, image in zip(batch.slice_ids, batch.images, strict=True):
            assert not any(torch.equal(image, other) for other in seen.get(slice_id, []))
            seen.setdefault(slice_id, []).append(image)
    assert sorted(len(images) for images in seen.values()) == [1] * 12 + [4] * 3
