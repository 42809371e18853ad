"""Batches of train slices: what is in them, whoever makes them."""

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

STRONG = {"flip": True, "rotate": 90.0, "scale": 0.3, "translate": 0.2}
LIGHT = {"brightness": 0.3, "contrast": 0.3, "gamma": 0.3, "gain": 0.3, "missing": 0.3}
NOTHING = dict.fromkeys([*STRONG, *LIGHT], 0.0) | {"flip": False}


def augmenting(**strength: float) -> albumentations.Compose:
    return augmentation(section(AugmentParams, **NOTHING | strength))


def slice_ids(data: Data, n_slices: int = 24) -> list[str]:
    return read_manifest(data.manifest)["slice_id"].tolist()[:n_slices]


def make_batches(
    data: Data, folder: Path, augment: albumentations.Compose | None = None, *, context: int = 0
) -> BatchMaker:
    """Return what makes batches of the first 24 slices."""
    slices = Slices(read_manifest(data.manifest).head(24))
    fitted = FittedSlices(slices, image_size=SIZE, normalization=NONE, folder=folder)
    return BatchMaker(fitted, context=context, augment=augment, seed=3)


def keys_of(maker: BatchMaker, *, epoch: int = 0) -> list[list[Key]]:
    """Return the keys of an epoch's batches, three of eight slices."""
    order = BatchOrder(len(maker.fitted), 8, seed=3)
    order.epoch = epoch
    return list(order)


def same(one: TrainBatch, other: TrainBatch) -> bool:
    return (
        one.slice_ids == other.slice_ids
        and torch.equal(one.images, other.images)
        and torch.equal(one.masks, other.masks)
    )


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on a single core
def test_the_number_of_workers_changes_nothing_and_the_epoch_everything(
    data: Data, tmp_path: Path
) -> None:
    """A thread makes them for a CPU, processes for a GPU, which go on from epoch to epoch."""
    maker = make_batches(data, tmp_path, augmenting(**STRONG, **LIGHT), context=1)
    order = BatchOrder(len(maker.fitted), 8, seed=3)
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    sources = [
        Batches(maker, order, device=d, workers=w) for d, w in ((cpu, 2), (gpu, 2), (gpu, 0))
    ]
    seen = []
    for epoch in (4, 5):
        order.epoch = epoch
        wanted = [maker[keys] for keys in keys_of(maker, epoch=epoch)]
        for batches in sources:
            found = list(batches)
            assert len(found) == len(batches) == 3
            assert all(same(one, other) for one, other in zip(found, wanted, strict=True))
        seen.append(
            {
                slice_id: image
                for batch in wanted
                for slice_id, image in zip(batch.slice_ids, batch.images, strict=True)
            }
        )
    assert seen[0].keys() == seen[1].keys()
    assert list(seen[0]) != list(seen[1])
    assert not any(torch.equal(image, seen[1][slice_id]) for slice_id, image in seen[0].items())


def test_what_fails_ahead_fails_where_it_is_needed_and_nothing_is_left_running() -> None:
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            raise Refusal("the third")
        return number

    taken: list[int] = []
    results = prefetch(work, range(100), threads=2, depth=4)
    with pytest.raises(Refusal, match="the third"):
        taken.extend(results)
    assert taken == [0, 1, 2]
    assert max(begun) < 12
    assert list(prefetch(work, [5, 4, 6], threads=3, depth=1)) == [5, 4, 6]
    early = prefetch(work, itertools.count(10), depth=3)
    assert next(early) == 10
    early.close()  # type: ignore[attr-defined]
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("ThreadPoolExecutor")]


def test_a_worker_that_cannot_hand_over_a_batch_ends(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the main process learns of it, and does not wait for ever."""

    class Unsendable:
        def __reduce__(self) -> str:
            raise RuntimeError("no room")

    maker = make_batches(data, tmp_path)
    monkeypatch.setattr(TrainBatch, "_make", lambda _: Unsendable())
    order = BatchOrder(len(maker.fitted), 8, seed=3)
    batches = Batches(maker, order, device=torch.device("cuda"), workers=1)
    with pytest.raises(RuntimeError, match="DataLoader worker .* exited unexpectedly"):
        list(batches)


def test_each_slice_comes_with_its_context_and_all_of_it_moves_together(
    data: Data, tmp_path: Path
) -> None:
    plain = make_batches(data, tmp_path, context=1)
    before, after = plain.fitted.slices.around.T
    batch = plain[[(0, 0, position) for position in range(len(plain.fitted))]]
    images = torch.from_numpy(np.array(plain.fitted.images))
    assert torch.equal(batch.images, torch.stack([images[before], images, images[after]], dim=1))
    changed = make_batches(data, tmp_path, augmenting(**STRONG, **LIGHT), context=1)
    first = changed[[(0, 0, 0)]].images[0]  # at the end of a volume: twice the same slice
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


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


def test_gamma_is_an_exponent_and_gain_a_factor_of_each_sequence() -> None:
    scan = np.array([50, 100, 150])
    exponents, factors = [], []
    for seed in range(300):
        exponents.append(np.log(changed_by(seed, gamma=0.3) / 255) / np.log(scan / 255))
        factors.append(changed_by(seed, gain=0.2) / scan)
    for drawn, value in ((np.array(exponents), 0.3), (np.array(factors), 0.2)):
        logarithms = np.log(drawn)
        assert np.abs(logarithms).max() == pytest.approx(value, abs=0.03)
        assert np.abs(logarithms.mean(axis=0)).max() < 0.04  # as often less as more
        assert np.abs(np.corrcoef(logarithms.T) - np.eye(3)).max() < 0.2


def test_contrast_is_a_factor_and_brightness_is_added_but_to_air() -> None:
    scan = np.array([50, 100, 150])
    factors = np.array([changed_by(seed, contrast=0.2) / scan for seed in range(100)])
    assert np.ptp(factors, axis=1).max() < 0.03  # of all sequences
    assert 0.79 < factors.min() < 0.85 < 1.15 < factors.max() < 1.21
    added = np.array([changed_by(seed, brightness=0.1) - scan for seed in range(100)])
    assert np.ptp(added, axis=1).max() <= 1
    assert -26 <= added.min() < -20 < 20 < added.max() <= 26
    augment = augmenting(brightness=0.3)
    augment.set_random_seed(1)
    air = np.zeros((8, 8, 3), np.uint8)
    assert not augment(image=air, mask=air[..., 0])["image"].any()


def test_scale_is_as_often_below_1_as_above() -> None:
    augment, mask = augmenting(scale=0.3), np.zeros((96, 96), np.uint8)
    mask[32:64, 32:64] = 1
    sides = []
    for seed in range(200):
        augment.set_random_seed(seed)
        moved = augment(image=np.repeat(mask[..., None], 3, axis=-1), mask=mask)
        sides.append(np.log(np.sqrt(moved["mask"].sum()) / 32))
    assert np.abs(sides).max() == pytest.approx(0.3, abs=0.04)
    assert np.mean(sides) == pytest.approx(0, abs=0.03)


def test_flair_stands_in_for_all_sequences_in_a_share_of_the_slices() -> None:
    kinds = [tuple(changed_by(seed, missing=0.4)) for seed in range(400)]
    whole, flair_alone = (50, 100, 150), (100, 100, 100)
    assert set(kinds) == {whole, flair_alone}
    assert kinds.count(flair_alone) / 400 == pytest.approx(0.4, abs=0.06)


def test_fitted_slices_are_those_of_the_files(data: Data, tmp_path: Path) -> None:
    maker = make_batches(data, tmp_path)
    assert maker.fitted.slices.ids == slice_ids(data)
    assert not list(tmp_path.iterdir())  # the file is gone with its last process
    batch = maker[[(0, 0, position) for position in range(24)]]
    for position, slice_id in enumerate(slice_ids(data)):
        image = read_image(slice_path(data.images, slice_id))
        mask = read_mask(slice_path(data.masks, slice_id))
        np.testing.assert_array_equal(batch.images[position, 0, :SIZE, :SIZE], image)
        np.testing.assert_array_equal(batch.masks[position, :SIZE, :SIZE], mask)
        assert maker.fitted.sizes[position] == (SIZE, SIZE)


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
        positions = [position for _, _, position in keys]
        assert abnormal[positions].sum() == n_abnormal
        for kind in (abnormal, ~abnormal):
            times = np.bincount(positions, minlength=40)[kind]
            assert times.max() - times.min() <= 1
        epochs.append(positions)
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) != epochs[0]


def test_all_are_drawn_once_where_all_are_abnormal() -> None:
    order = BatchOrder(16, 8, seed=1, abnormal=np.ones(16, dtype=bool), abnormal_share=0.5)
    assert sorted(position for batch in order for *_, position in batch) == list(range(16))


def test_a_slice_drawn_again_is_augmented_anew(data: Data, tmp_path: Path) -> None:
    maker = make_batches(data, tmp_path, augmenting(**STRONG, **LIGHT))
    abnormal = np.arange(len(maker.fitted)) < 3
    order = BatchOrder(len(maker.fitted), 8, seed=3, abnormal=abnormal, abnormal_share=0.5)
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in map(maker.__getitem__, order):
        for slice_id, image in zip(batch.slice_ids, batch.images, strict=True):
            assert not any(torch.equal(image, other) for other in seen.get(slice_id, []))
            seen.setdefault(slice_id, []).append(image)
    assert sorted(len(images) for images in seen.values()) == [1] * 12 + [4] * 3
