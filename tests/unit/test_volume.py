"""Connected components in 3-D, done by hand."""

import numpy as np

from scans.volume import components, largest_component, stack


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
    kept = largest_component(volume, range(len(volume)))
    assert kept.dtype == np.bool_
    assert kept.sum() == 3
    assert kept[2, 3, 1:4].all()


def test_the_first_of_equal_components_is_kept_and_nothing_of_none() -> None:
    volume = np.zeros((2, 3, 3), np.bool_)
    assert not largest_component(volume, range(len(volume))).any()
    assert components(volume, [1, 2])[1].tolist() == []
    volume[0, 0, 0] = volume[1, 2, 2] = True
    assert np.argwhere(largest_component(volume, range(len(volume)))).tolist() == [[0, 0, 0]]


def test_a_gap_between_slices_parts_components() -> None:
    volume = np.zeros((5, 3, 3), np.bool_)
    volume[:, 1, 1] = True
    labels, sizes = components(volume, [1, 2, 4, 5, 9])
    assert sizes.tolist() == [2, 2, 1]
    assert labels[:, 1, 1].tolist() == [1, 1, 2, 2, 3]
    assert labels.shape == volume.shape
    assert np.argwhere(largest_component(volume, [1, 2, 4, 5, 6]))[:, 0].tolist() == [2, 3, 4]
