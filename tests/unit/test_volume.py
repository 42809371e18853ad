"""Connected components in 3-D, done by hand."""

import numpy as np
import pytest

from scans.volume import components, large_components, stack


def test_slices_of_unequal_size_are_stacked_from_their_corner() -> None:
    volume = stack([np.ones((2, 3), np.bool_), np.ones((4, 2), np.bool_)])
    assert volume.shape == (2, 4, 3)
    assert volume[0].sum() == 6
    assert volume[0, :2].all()
    assert volume[1].sum() == 8
    assert volume[1, :, :2].all()


def test_pixels_hang_together_by_their_faces_across_slices_too() -> None:
    volume = np.zeros((3, 4, 4), np.bool_)
    volume[0, 0, 0] = volume[1, 0, 0] = True  # one above the other
    volume[1, 1, 1] = True  # across a corner: another one
    volume[2, 3, 1:4] = True
    labels, sizes = components(volume, [1, 2, 3])
    assert sizes.tolist() == [2, 1, 3]
    assert labels[0, 0, 0] == labels[1, 0, 0] == 1
    kept = large_components(volume, [1, 2, 3], share=1)
    assert kept.dtype == np.bool_
    assert kept.sum() == 3
    assert kept[2, 3, 1:4].all()


@pytest.mark.parametrize(
    ("share", "n_kept"), [(0, 8), (0.25, 8), (0.26, 7), (0.75, 7), (0.76, 4), (1, 4)]
)
def test_components_from_a_share_of_the_largest_on_are_kept(share: float, n_kept: int) -> None:
    """Components of 3, 1 and 4 pixels side by side."""
    volume = np.zeros((1, 4, 7), np.bool_)
    for column, size in enumerate((3, 1, 4)):
        volume[0, :size, 2 * column] = True
    assert large_components(volume, [1], share=share).sum() == n_kept


def test_equal_components_are_kept_together_and_nothing_of_none() -> None:
    volume = np.zeros((2, 3, 3), np.bool_)
    for share in (0, 1):
        assert not large_components(volume, [1, 2], share=share).any()
    assert components(volume, [1, 2])[1].tolist() == []
    volume[0, 0, 0] = volume[1, 2, 2] = True
    np.testing.assert_array_equal(large_components(volume, [1, 2], share=1), volume)


def test_a_gap_between_slices_parts_components() -> None:
    volume = np.zeros((5, 3, 3), np.bool_)
    volume[:, 1, 1] = True
    labels, sizes = components(volume, [1, 2, 4, 5, 9])
    assert sizes.tolist() == [2, 2, 1]
    assert labels[:, 1, 1].tolist() == [1, 1, 2, 2, 3]
    assert labels.shape == volume.shape
    kept = large_components(volume, [1, 2, 4, 5, 6], share=1)
    assert np.argwhere(kept)[:, 0].tolist() == [2, 3, 4]
