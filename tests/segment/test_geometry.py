"""However a scan is stored, the mask has the same position in the patient."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest

from application.field import choose_field
from application.segmentation import segment, slice_groups
from heads import VOXEL, BrightTumor, Head, axial_affine, stored
from pipeline.refusals import Refusal
from scans.series import Axial, Series, check_plane, resampled

LAYOUTS = [
    (order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
]


def as_series(
    slices: np.ndarray,
    order: tuple[int, ...] = (0, 1, 2),
    signs: tuple[int, ...] = (1, 1, 1),
    affine: np.ndarray | None = None,
) -> Series:
    """Return axial slices as a series with the given order and direction of axes."""
    volume, base = stored(slices), axial_affine() if affine is None else affine
    turned = volume.transpose(order)[tuple(slice(None, None, sign) for sign in signs)]
    moved = np.eye(4)
    for axis, (source, sign) in enumerate(zip(order, signs, strict=True)):
        moved[:3, axis] = 0
        moved[source, axis] = sign
        if sign < 0:
            moved[source, 3] = volume.shape[source] - 1
    return Series(turned, base @ moved, (Path("scan.nii.gz"),))


def found_positions(series: dict[str, Series]) -> set[tuple[float, ...]]:
    """Segment a patient; return the positions of the tumor's voxels in mm."""
    found = segment(series, BrightTumor())
    mask = found.axial.turn_back(found.mask)
    assert mask.shape == found.flair.values.shape
    voxels = np.argwhere(mask)
    positions = voxels @ found.flair.affine[:3, :3].T + found.flair.affine[:3, 3]
    return {tuple(position) for position in positions.round(3).tolist()}


@pytest.fixture(scope="module")
def expected_positions(head: Head) -> set[tuple[float, ...]]:
    """Return the positions of the tumor without its lowest slice, which BrightTumor omits."""
    tumor = head.tumor.copy()
    tumor[np.flatnonzero(tumor.any(axis=(1, 2)))[0]] = False
    voxels = np.argwhere(stored(tumor))
    positions = voxels @ axial_affine()[:3, :3].T + axial_affine()[:3, 3]
    return {tuple(position) for position in positions.round(3).tolist()}


@pytest.mark.parametrize(("order", "signs"), LAYOUTS)
def test_every_order_and_direction_of_axes_gives_the_same_positions(
    head: Head,
    expected_positions: set[tuple[float, ...]],
    order: tuple[int, ...],
    signs: tuple[int, ...],
) -> None:
    """All 48 orientations, the same for all sequences."""
    series = {name: as_series(each, order, signs) for name, each in head.sequences.items()}
    assert found_positions(series) == expected_positions


def test_sequences_may_have_another_orientation_than_flair(
    head: Head, expected_positions: set[tuple[float, ...]]
) -> None:
    series = {name: as_series(each) for name, each in head.sequences.items()}
    series["pre_contrast"] = as_series(head.sequences["pre_contrast"], (2, 0, 1), (-1, 1, -1))
    assert found_positions(series) == expected_positions


@pytest.mark.parametrize("degrees", [8, 25, -40])
def test_an_oblique_scan_gives_the_same_voxels(head: Head, degrees: float) -> None:
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    straight, oblique = (
        segment(
            {name: as_series(each, affine=affine) for name, each in head.sequences.items()},
            BrightTumor(),
        )
        for affine in (axial_affine(), turn @ axial_affine())
    )
    assert np.array_equal(straight.mask, oblique.mask)
    assert straight.mask.any()
    tilted = [warning for warning in oblique.warnings if "tilted" in warning]
    assert bool(tilted) == (abs(degrees) > 30)


def test_a_finer_grid_is_resampled_to_that_of_flair(head: Head) -> None:
    """A ramp on a grid with half the voxel size is interpolated linearly."""
    coarse = as_series(head.sequences["flair"])
    ramp = np.arange(24, dtype=np.float32)[None, None, :] * np.ones((112, 128, 1), np.float32)
    affine = coarse.affine @ np.diag([0.5, 0.5, 0.5, 1])
    values, covered = resampled(Series(ramp, affine, (Path("fine.nii"),)), coarse)
    np.testing.assert_allclose(values[20, 20], np.arange(12) * 2, atol=1e-4)
    assert covered == 1


def test_a_small_shift_between_grids_loses_no_slice(head: Head) -> None:
    flair = as_series(head.sequences["flair"])
    moved = np.eye(4)
    moved[:3, 3] = 0.01
    values, covered = resampled(flair._replace(affine=moved @ flair.affine), flair)
    assert covered == 1
    np.testing.assert_allclose(values, flair.values, atol=10)


@pytest.mark.parametrize("sizes", [(900.0, 900.0, 5000.0), (0.01, 0.01, 5.0), (9e-4, 9e-4, 5e-3)])
def test_an_implausible_voxel_size_is_an_error(
    sizes: tuple[float, float, float],
) -> None:
    series = Series(np.zeros((8, 8, 8)), np.diag([*sizes, 1]), (Path("scan.nii"),))
    with pytest.raises(Refusal, match=f"scan.nii: .*{sizes[2]:g} mm"):
        check_plane(series)


def test_a_sequence_must_cover_at_least_half_of_flairs_grid(head: Head) -> None:
    flair = as_series(head.sequences["flair"])
    away = np.eye(4)
    away[0, 3] = 7 * VOXEL[2]  # of 56 columns
    other = flair._replace(affine=away @ flair.affine)
    found = segment({"flair": flair, "pre_contrast": other}, BrightTumor())
    assert any("88%" in warning for warning in found.warnings)
    away[0, 3] = 150
    other = flair._replace(affine=away @ flair.affine)
    with pytest.raises(Refusal, match="scan.nii.gz covers"):
        resampled(other, flair)
    found = segment({"flair": flair, "pre_contrast": other}, BrightTumor())
    assert found.missing == ("pre_contrast", "post_contrast")
    assert any("pre-contrast T1" in warning and "%" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("sizes", "plane"), [((5.0, 0.9, 0.9), "sagittal"), ((0.9, 4.0, 0.9), "coronal")]
)
def test_thick_slices_that_are_not_axial_are_an_error(
    sizes: tuple[float, float, float], plane: str
) -> None:
    series = Series(np.zeros((8, 8, 8)), np.diag([*sizes, 1]), (Path("scan.nii"),))
    with pytest.raises(Refusal, match=f"{plane} .*{max(sizes)} mm"):
        check_plane(series)
    check_plane(series._replace(affine=np.diag([1.0, 1.2, 1.3, 1])))
    check_plane(series._replace(affine=np.diag([1.2, 0.5, 0.5, 1])))  # 3-D, interpolated


def test_slices_are_turned_and_turned_back() -> None:
    rng = np.random.default_rng(0)
    volume = rng.random((4, 5, 6))
    for order, signs in LAYOUTS:
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for axis, (source, sign) in enumerate(zip(order, signs, strict=True)):
            affine[source, axis] = sign
        axial = Axial.of(affine)
        assert np.array_equal(axial.turn_back(axial.turn(volume)), volume)


def test_neighbors_of_thin_slices_are_as_far_apart_as_in_training() -> None:
    groups = slice_groups(range(7), stride=3)
    assert [group.tolist() for group in groups] == [[0, 3, 6], [1, 4], [2, 5]]
    assert [group.tolist() for group in slice_groups([1, 2, 3, 7, 8], stride=1)] == [
        [0, 1, 2],
        [3, 4],
    ]
    assert BrightTumor().stride(1.0) == 5
    assert BrightTumor().stride(4.0) == BrightTumor().stride(8.0) == 1


@pytest.mark.parametrize(
    ("shape", "pixel", "expected"),
    [
        ((64, 56), (3.6, 3.6), (0, 0, 64, 56)),  # the size of the field: used whole
        ((64, 64), (4.0, 4.0), (0, 0, 64, 64)),  # 256 mm: within 12 %
        ((40, 32), (3.6, 3.6), (-12, -16, 64, 64)),  # smaller: padded on all sides
        ((96, 80), (3.6, 3.6), (6, 12, 64, 64)),  # larger: cropped around the head
    ],
)
def test_the_field_of_view_is_that_of_the_model(
    shape: tuple[int, int], pixel: tuple[float, float], expected: tuple[int, ...]
) -> None:
    tissue = np.zeros((3, *shape), dtype=bool)
    tissue[:, 10:-20, 4:-4][:, ::3] = True
    if shape == (96, 80):
        tissue[:] = False
        tissue[:, 8:68, 20:68] = True
    field = choose_field(tissue, pixel, 230.0)
    assert field[:4] == expected
    cut = field.cut(tissue)
    assert cut.shape == (3, *expected[2:])
    assert cut.sum() == tissue.sum()


@pytest.mark.parametrize("pixel", [(3.6, 1.8), (1.8, 3.6), (7.2, 7.2), (1.8, 1.8)])
def test_pixels_of_any_size_and_shape_give_the_same_tumor(
    head: Head, pixel: tuple[float, float]
) -> None:
    """Pixels twice or half as large along an axis, by dropping or repeating pixels."""
    factors = [new / old for new, old in zip(pixel, VOXEL[1:], strict=True)]
    scaled = {}
    for name, slices in head.sequences.items():
        found = slices
        for axis, factor in enumerate(factors, start=1):
            found = found.repeat(2, axis) if factor < 1 else found
            found = np.take(found, range(0, found.shape[axis], 2), axis) if factor > 1 else found
        affine = axial_affine() @ np.diag([factors[1], factors[0], 1, 1])
        scaled[name] = as_series(found, affine=affine)
    found_volume = segment(scaled, BrightTumor())
    area = float(np.prod(found_volume.voxel_size))
    plain = segment({n: as_series(each) for n, each in head.sequences.items()}, BrightTumor())
    expected = plain.mask.sum() * float(np.prod(VOXEL))
    assert found_volume.mask.sum() * area == pytest.approx(expected, rel=0.2)
