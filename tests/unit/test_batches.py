"""Batches of train slices: their content, order and augmentation, with any number of workers."""

import itertools
import threading
from pathlib import Path

import albumentations
import numpy as np
import pytest
import torch

from helpers import SIZE, Data, section
from learning.augmentation import augmentation
from learning.batches import Batches, BatchMaker, BatchOrder, Key, TrainBatch
from learning.params import AugmentParams
from pipeline.parallel import prefetch
from pipeline.refusals import Refusal
from scans.fitted import FittedSlices, Slices
from scans.manifest import read_manifest
from scans.names import slice_path
from scans.normalization import NONE
from scans.tiff import read_image, read_mask

GEOMETRY = {"flip": True, "rotate": 90.0, "scale": 0.3, "translate": 0.2}
INTENSITY = {"brightness": 0.3, "contrast": 0.3, "gamma": 0.3, "gain": 0.3, "missing": 0.3}
NO_AUGMENTATION = dict.fromkeys([*GEOMETRY, *INTENSITY], 0.0) | {"flip": False}


def make_augmentation(**strength: float) -> albumentations.Compose:
    return augmentation(section(AugmentParams, **NO_AUGMENTATION | strength))


def slice_ids(data: Data, n_slices: int = 24) -> list[str]:
    return read_manifest(data.manifest)["slice_id"].tolist()[:n_slices]


def make_maker(
    data: Data, folder: Path, augment: albumentations.Compose | None = None, *, context: int = 0
) -> BatchMaker:
    """Return a BatchMaker for the first 24 slices."""
    slices = Slices(read_manifest(data.manifest).head(24))
    fitted = FittedSlices(slices, image_size=SIZE, normalization=NONE, folder=folder)
    return BatchMaker(fitted, context=context, augment=augment, seed=3)


def keys_of(maker: BatchMaker, *, epoch: int = 0) -> list[list[Key]]:
    """Return the keys of an epoch's batches: three batches of eight slices."""
    order = BatchOrder(len(maker.fitted), 8, seed=3)
    order.epoch = epoch
    return list(order)


def are_equal(one: TrainBatch, other: TrainBatch) -> bool:
    return (
        one.slice_ids == other.slice_ids
        and torch.equal(one.images, other.images)
        and torch.equal(one.masks, other.masks)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
def test_batches_depend_on_the_epoch_but_not_on_the_number_of_workers(
    data: Data, tmp_path: Path
) -> None:
    """A thread makes them for a CPU; workers, which persist across epochs, make them for a GPU."""
    maker = make_maker(data, tmp_path, make_augmentation(**GEOMETRY, **INTENSITY), context=1)
    order = BatchOrder(len(maker.fitted), 8, seed=3)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    sources = [
        Batches(maker, order, device=d, workers=w) for d, w in ((cpu, 2), (gpu, 2), (gpu, 0))
    ]
    seen = []
    for epoch in (4, 5):
        order.epoch = epoch
        expected = [maker[keys] for keys in keys_of(maker, epoch=epoch)]
        for batches in sources:
            found = list(batches)
            assert len(found) == len(batches) == 3
            assert all(are_equal(a, b) for a, b in zip(found, expected, strict=True))
        seen.append(
            {
                slice_id: image
                for batch in expected
                for slice_id, image in zip(batch.slice_ids, batch.images, strict=True)
            }
        )
    assert seen[0].keys() == seen[1].keys()
    assert list(seen[0]) != list(seen[1])
    assert not any(torch.equal(image, seen[1][slice_id]) for slice_id, image in seen[0].items())


def test_errors_of_prefetched_items_are_raised_in_order_and_no_thread_keeps_running() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise Refusal("the third")
        return number

    received: list[int] = []
    results = prefetch(work, range(100), threads=2, depth=4)
    with pytest.raises(Refusal, match="the third"):
        received.extend(results)
    assert received == [0, 1, 2]
    assert max(begun) < 12
    assert list(prefetch(work, [5, 4, 6], threads=3, depth=1)) == [5, 4, 6]
    unfinished = prefetch(work, itertools.count(10), depth=3)
    assert next(unfinished) == 10
    unfinished.close()  # type: ignore[attr-defined]
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("ThreadPoolExecutor")]


def test_a_worker_that_cannot_pass_on_a_batch_exits(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, the main process would wait forever."""

    class Unsendable:
        def __reduce__(self) -> str:
            raise RuntimeError("no room")

    maker = make_maker(data, tmp_path)
    monkeypatch.setattr(TrainBatch, "_make", lambda _: Unsendable())
    order = BatchOrder(len(maker.fitted), 8, seed=3)
    batches = Batches(maker, order, device=torch.device("cuda"), workers=1)
    with pytest.raises(RuntimeError, match="DataLoader worker .* exited unexpectedly"):
        list(batches)


def test_each_slice_has_its_neighbors_and_all_get_the_same_augmentation(
    data: Data, tmp_path: Path
) -> None:
    plain = make_maker(data, tmp_path, context=1)
    before, after = plain.fitted.slices.neighbors.T
    batch = plain[[(0, 0, position) for position in range(len(plain.fitted))]]
    images = torch.from_numpy(np.array(plain.fitted.images))
    assert torch.equal(batch.images, torch.stack([images[before], images, images[after]], dim=1))
    changed = make_maker(data, tmp_path, make_augmentation(**GEOMETRY, **INTENSITY), context=1)
    first = changed[[(0, 0, 0)]].images[
        0
    ]  # at the end of a volume, the slice replaces its missing neighbor
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_scan_and_mask_are_transformed_alike_and_the_mask_stays_binary(data: Data) -> None:
    augment = make_augmentation(**GEOMETRY)
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


def test_intensity_augmentation_does_not_change_the_mask() -> None:
    augment = make_augmentation(**INTENSITY)
    augment.set_random_seed(1)
    image, mask = np.full((8, 8, 3), 100, np.uint8), np.eye(8, dtype=np.uint8)
    augmented = augment(image=image, mask=mask)
    assert not np.array_equal(augmented["image"], image)
    np.testing.assert_array_equal(augmented["mask"], mask)


def changed_by(seed: int, **strength: float) -> np.ndarray:
    """Return the three levels that an augmentation makes of a scan with levels 50, 100 and 150."""
    augment = make_augmentation(**strength)
    augment.set_random_seed(seed)
    scan = np.tile(np.array([50, 100, 150], dtype=np.uint8), (8, 8, 1))
    changed: np.ndarray = augment(image=scan, mask=scan[..., 0] * 0)["image"][0, 0]
    return changed


def test_gamma_is_an_exponent_and_gain_a_factor_of_each_sequence() -> None:
    scan = np.array([50, 100, 150])
    exponents, factors = [], []
    for seed in range(300):
        exponents.append(np.log(changed_by(seed, gamma=0.3) / 255) / np.log(scan / 255))
        factors.append(changed_by(seed, gain=0.2) / scan)
    for drawn, value in ((np.array(exponents), 0.3), (np.array(factors), 0.2)):
        logarithms = np.log(drawn)
        assert np.abs(logarithms).max() == pytest.approx(value, abs=0.03)
        assert (
            np.abs(logarithms.mean(axis=0)).max() < 0.04
        )  # increases and decreases are equally likely
        assert np.abs(np.corrcoef(logarithms.T) - np.eye(3)).max() < 0.2


def test_contrast_is_a_factor_and_brightness_is_added_except_to_air() -> None:
    scan = np.array([50, 100, 150])
    factors = np.array([changed_by(seed, contrast=0.2) / scan for seed in range(100)])
    assert np.ptp(factors, axis=1).max() < 0.03  # the same factor for all sequences
    assert 0.79 < factors.min() < 0.85 < 1.15 < factors.max() < 1.21
    added = np.array([changed_by(seed, brightness=0.1) - scan for seed in range(100)])
    assert np.ptp(added, axis=1).max() <= 1
    assert -26 <= added.min() < -20 < 20 < added.max() <= 26
    augment = make_augmentation(brightness=0.3)
    augment.set_random_seed(1)
    air = np.zeros((8, 8, 3), np.uint8)
    assert not augment(image=air, mask=air[..., 0])["image"].any()


def test_scale_factors_below_and_above_1_are_equally_likely() -> None:
    augment, mask = make_augmentation(scale=0.3), np.zeros((96, 96), np.uint8)
    mask[32:64, 32:64] = 1
    sides = []
    for seed in range(200):
        augment.set_random_seed(seed)
        moved = augment(image=np.repeat(mask[..., None], 3, axis=-1), mask=mask)
        sides.append(np.log(np.sqrt(moved["mask"].sum()) / 32))
    assert np.abs(sides).max() == pytest.approx(0.3, abs=0.04)
    assert np.mean(sides) == pytest.approx(0, abs=0.03)


def test_flair_replaces_all_sequences_in_a_fraction_of_the_slices() -> None:
    kinds = [tuple(changed_by(seed, missing=0.4)) for seed in range(400)]
    complete, only_flair = (50, 100, 150), (100, 100, 100)
    assert set(kinds) == {complete, only_flair}
    assert kinds.count(only_flair) / 400 == pytest.approx(0.4, abs=0.06)


def test_fitted_slices_equal_the_files(data: Data, tmp_path: Path) -> None:
    maker = make_maker(data, tmp_path)
    assert maker.fitted.slices.ids == slice_ids(data)
    assert not list(tmp_path.iterdir())  # the temporary file is not visible
    batch = maker[[(0, 0, position) for position in range(24)]]
    for position, slice_id in enumerate(slice_ids(data)):
        image = read_image(slice_path(data.images, slice_id))
        mask = read_mask(slice_path(data.masks, slice_id))
        np.testing.assert_array_equal(batch.images[position, 0, :SIZE, :SIZE], image)
        np.testing.assert_array_equal(batch.masks[position, :SIZE, :SIZE], mask)
        assert maker.fitted.sizes[position] == (SIZE, SIZE)


def test_an_incomplete_batch_is_dropped_unless_it_is_the_only_one() -> None:
    keys = [key for batch in BatchOrder(21, 8, seed=1) for key in batch]
    assert len(keys) == len(set(keys)) == 16
    assert [len(batch) for batch in BatchOrder(5, 8, seed=1)] == [5]


def test_importing_albumentations_makes_no_network_request() -> None:
    source = Path(augmentation.__code__.co_filename).read_text()
    assert source.index("NO_ALBUMENTATIONS_UPDATE") < source.index("import albumentations")


@pytest.mark.parametrize(("share", "n_abnormal"), [(0.5, 20), (0.1, 4), (0.9, 36)])
def test_the_given_fraction_of_each_epoch_is_abnormal(share: float, n_abnormal: int) -> None:
    """Of 40 slices, 10 are abnormal; slices of a kind are drawn equally often, ± 1."""
    abnormal = np.arange(40) % 4 == 0
    order = BatchOrder(40, 8, seed=1, abnormal=abnormal, abnormal_share=share)
    epochs = []
    for epoch in (0, 1):
        order.epoch = epoch
        keys = [key for batch in order for key in batch]
        assert len(set(keys)) == len(keys) == 40  # so all are augmented differently
        positions = [position for _, _, position in keys]
        assert abnormal[positions].sum() == n_abnormal
        for kind in (abnormal, ~abnormal):
            times = np.bincount(positions, minlength=40)[kind]
            assert times.max() - times.min() <= 1
        epochs.append(positions)
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) != epochs[0]


def test_each_slice_is_drawn_once_if_all_are_abnormal() -> None:
    order = BatchOrder(16, 8, seed=1, abnormal=np.ones(16, dtype=bool), abnormal_share=0.5)
    assert sorted(position for batch in order for *_, position in batch) == list(range(16))


def test_a_slice_that_is_drawn_twice_is_augmented_differently(data: Data, tmp_path: Path) -> None:
    maker = make_maker(data, tmp_path, make_augmentation(**GEOMETRY, **INTENSITY))
    abnormal = np.arange(len(maker.fitted)) < 3
    order = BatchOrder(len(maker.fitted), 8, seed=3, abnormal=abnormal, abnormal_share=0.5)
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in map(maker.__getitem__, order):
        for slice_id, image in zip(batch.slice_ids, batch.images, strict=True):
            assert not any(torch.equal(image, other) for other in seen.get(slice_id, []))
            seen.setdefault(slice_id, []).append(image)
    assert sorted(len(images) for images in seen.values()) == [1] * 12 + [4] * 3
