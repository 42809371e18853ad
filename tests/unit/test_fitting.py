"""Fitting slices into a square and back; their neighbors in the volume."""

import numpy as np
import pytest
import torch

from helpers import SIZE, Data
from scans.fitting import fit, fit_mask, interpolation, neighbors, padded_size, unfit
from scans.manifest import read_manifest
from scans.names import slice_path
from scans.tiff import read_image


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
def test_a_fitted_slice_is_restored_to_its_original_size(
    height: int, width: int, image_size: int, padded: int
) -> None:
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = (120 + 60 * np.sin(rows / height * 3) + 50 * columns / width).astype(np.uint8)
    fitted = fit(smooth, image_size)
    assert fitted.shape == (padded, padded) == (padded_size(image_size),) * 2
    back = unfit(fitted.astype(np.float32), height, width, image_size)
    assert back.shape == (height, width)
    assert np.abs(back - smooth).mean() < 3


def test_a_slice_of_the_networks_size_is_only_padded(data: Data) -> None:
    """Its pixels stay unchanged, and so do the values after cropping it back."""
    for slice_id in read_manifest(data.manifest)["slice_id"].tolist()[:3]:
        image = read_image(slice_path(data.images, slice_id))
        fitted = fit(image, SIZE)
        assert fitted.shape == (64, 64, 3)
        np.testing.assert_array_equal(fitted[:SIZE, :SIZE], image)
        assert not fitted[SIZE:].any()
        assert not fitted[:, SIZE:].any()
        channel = fitted[..., 1].astype(np.float32)
        np.testing.assert_array_equal(unfit(channel, SIZE, SIZE, SIZE), image[..., 1])


def test_half_the_size_is_the_mean_of_four_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    sums = pixels.reshape(32, 2, 32, 2, 3).sum(axis=(1, 3), dtype=np.int64)
    np.testing.assert_array_equal(fit(pixels, 32), (sums + 2) // 4)


def test_a_mask_is_fitted_like_its_scan() -> None:
    """A pixel is tumor if tumor fills half of its area."""
    mask = np.zeros((64, 64), np.bool_)
    mask[10:30, 7:21] = True
    fitted = fit_mask(mask, 32)
    assert fitted.dtype == np.uint8
    assert np.argwhere(fitted).min(axis=0).tolist() == [5, 3]
    assert np.argwhere(fitted).max(axis=0).tolist() == [14, 10]
    assert fitted.sum() == 10 * 8
    np.testing.assert_array_equal(fit_mask(mask, 64), mask)


def test_neighbors_are_the_next_numbers_of_the_same_patient() -> None:
    """At the ends of a volume and at a gap, a missing neighbor is the slice itself."""
    patient_ids, numbers = ["A", "A", "B", "A", "B", "A"], [1, 2, 2, 4, 1, 5]
    assert neighbors(patient_ids, numbers).tolist() == [
        [0, 1], [0, 1], [4, 2], [3, 5], [4, 2], [3, 5],
    ]  # fmt: skip
    assert neighbors([], []).shape == (0, 2)


@pytest.mark.parametrize(("n_out", "n_in"), [(256, 128), (90, 31), (31, 90), (7, 1), (5, 5)])
def test_interpolation_matches_pytorch(n_out: int, n_in: int) -> None:
    values = np.random.default_rng(0).normal(size=(n_in, n_in)).astype(np.float32)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], (n_out, n_out), mode="bilinear", align_corners=False
    )
    found = interpolation(n_out, n_in) @ values @ interpolation(n_out, n_in).T
    np.testing.assert_allclose(found, expected[0, 0].numpy(), atol=1e-4)
