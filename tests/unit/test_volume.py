"""Connected components in 3-D, compared with values by hand."""

import numpy as np
import pytest

from scans.volume import components, large_components, stack


def test_slices_of_different_sizes_are_aligned_at_the_top_left_corner() -> None:
    volume = stack([np.ones((2, 3), np.bool_), np.ones((4, 2), np.bool_)])
    assert volume.shape == (2, 4, 3)
    assert volume[0].sum() == 6
    assert volume[0, :2].all()
    assert volume[1].sum() == 8
    assert volume[1, :, :2].all()


def test_pixels_are_connected_through_faces_also_between_slices() -> None:
    volume = np.zeros((3, 4, 4), np.bool_)
    volume[0, 0, 0] = volume[1, 0, 0] = True  # connected between slices
    volume[1, 1, 1] = True  # touches only a corner, so it is a separate component
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
def test_components_below_a_share_of_the_largest_are_removed(share: float, n_kept: int) -> None:
    """The components have 3, 1 and 4 pixels."""
    volume = np.zeros((1, 4, 7), np.bool_)
    for column, size in enumerate((3, 1, 4)):
        volume[0, :size, 2 * column] = True
    assert large_components(volume, [1], share=share).sum() == n_kept


def test_largest_components_of_equal_size_are_all_kept_and_an_empty_volume_stays_empty() -> None:
    volume = np.zeros((2, 3, 3), np.bool_)
    for share in (0, 1):
        assert not large_components(volume, [1, 2], share=share).any()
    assert components(volume, [1, 2])[1].tolist() == []
    volume[0, 0, 0] = volume[1, 2, 2] = True
    np.testing.assert_array_equal(large_components(volume, [1, 2], share=1), volume)


def test_a_gap_in_slice_numbers_separates_components() -> None:
    volume = np.zeros((5, 3, 3), np.bool_)
    volume[:, 1, 1] = True
    labels, sizes = components(volume, [1, 2, 4, 5, 9])
    assert sizes.tolist() == [2, 2, 1]
    assert labels[:, 1, 1].tolist() == [1, 1, 2, 2, 3]
    assert labels.shape == volume.shape
    kept = large_components(volume, [1, 2, 4, 5, 6], share=1)
    assert np.argwhere(kept)[:, 0].tolist() == [2, 3, 4]
