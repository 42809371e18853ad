"""The overlays of a scan: their SVG paths, rasterized again, equal the masks."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from matplotlib.path import Path as Polygon
from PIL import Image

from helpers import SIZE, Data, noisy, write_maps
from page.drawing import area, outline, webp
from page.gallery import album, overlay, views
from scans.manifest import read_manifest
from scans.names import slice_path
from scans.tiff import read_image
from scans.volume import large_components, stack
from scoring.overlap import count_pixels

MASKS = npst.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def filled(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Return how often each pixel is covered by a path of rectangles."""
    counts = np.zeros(shape, dtype=int)
    for x, y, n in re.findall(r"M(\d+) (\d+)h(\d+)v1h-\3z", path):
        counts[int(y), int(x) : int(x) + int(n)] += 1
    return counts


def enclosed(path: str, shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels whose center is inside an odd number of a path's lines."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] + 0.5
    centers = np.stack([columns.ravel(), rows.ravel()], axis=1)
    inside = np.zeros(len(centers), dtype=bool)
    for start, moves in re.findall(r"M([^l]+)((?:l[^lz]+)+)z", path):
        numbers = [[float(n) for n in move.split()] for move in moves[1:].split("l")]
        points = np.cumsum([[float(n) for n in start.split()], *numbers], axis=0)
        assert np.allclose(points[0], points[-1])
        inside ^= Polygon(points).contains_points(centers)
    return inside.reshape(shape)


@given(MASKS)
def test_an_area_covers_every_pixel_of_the_mask_once(mask: np.ndarray) -> None:
    path = area(mask)
    assert re.fullmatch(r"(M\d+ \d+h\d+v1h-\d+z)*", path)
    np.testing.assert_array_equal(filled(path, mask.shape), mask)


@given(MASKS)
def test_an_outline_encloses_the_mask(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(enclosed(outline(mask), mask.shape), mask)


def test_a_rectangle_has_the_outline_drawn_by_hand() -> None:
    mask = np.zeros((6, 8), dtype=bool)
    mask[2:5, 3:5] = True
    assert area(mask) == "M3 2h2v1h-2zM3 3h2v1h-2zM3 4h2v1h-2z"
    path = outline(mask)
    assert path.count("M") == path.count("z") == 1
    assert sorted(re.findall(r"l(\S+ \S+?)(?=[lz])", path)) == sorted(
        ["1 0", "0.5 0.5", "0 2", "-0.5 0.5", "-1 0", "-0.5 -0.5", "0 -2", "0.5 -0.5"]
    )
    assert outline(~mask & mask) == area(~mask & mask) == ""


def test_an_overlay_separates_correct_missed_and_false_pixels() -> None:
    predicted, mask = np.zeros((2, 4, 4), dtype=bool)
    predicted[0], mask[0, 2:], mask[3, 0] = True, True, True
    paths = overlay(predicted, mask)
    assert paths["right"] == "M2 0h2v1h-2z"
    assert paths["false"] == "M0 0h2v1h-2z"
    assert paths["missed"] == "M0 3h1v1h-1z"
    assert paths["reference"] == outline(mask)
    assert paths["prediction"] == outline(predicted)


def test_a_compressed_sequence_looks_like_the_original(data: Data) -> None:
    slice_id = read_manifest(data.splits)["slice_id"].iloc[40]
    channel = read_image(slice_path(data.images, slice_id))[..., 1]
    with Image.open(io.BytesIO(base64.b64decode(webp(channel))), formats=["WEBP"]) as image:
        shown = np.asarray(image.convert("L")).astype(int)
    assert shown.shape == (SIZE, SIZE)
    assert np.abs(shown - channel).mean() < 6
    assert np.corrcoef(shown.ravel(), channel.ravel())[0, 1] > 0.98


def test_a_copy_of_flair_is_not_stored_again(data: Data) -> None:
    image = read_image(slice_path(data.images, read_manifest(data.splits)["slice_id"].iloc[40]))
    image = np.repeat(image[..., 1:2], 3, axis=2)
    image[..., 2] //= 2
    first, flair, last = views(image)
    assert first == ""
    assert flair == webp(image[..., 1])
    assert last == webp(image[..., 2]) != flair


@pytest.mark.parametrize("share", [0, 1])
def test_an_album_has_the_slices_of_one_split_and_their_counts(
    data: Data, masks: dict[str, np.ndarray], tmp_path: Path, share: float
) -> None:
    manifest = read_manifest(data.splits)
    volume = next(rows for _, rows in manifest.groupby("patient_id"))
    volume = volume.assign(split=np.resize(["test", "train"], len(volume)))
    answers = noisy({slice_id: masks[slice_id] for slice_id in volume["slice_id"]})
    for answer in answers.values():
        answer[:2, :2] = 0.9  # a separate component, not the largest
    write_maps(tmp_path, answers)
    predicted = stack([answer > 0.5 for answer in answers.values()])
    numbers = range(len(predicted))
    kept = large_components(predicted, numbers, share=share)
    assert kept[:, 0, 0].any() == (share == 0)
    counts = [
        count_pixels(each, masks[slice_id])
        for each, slice_id in zip(kept, volume["slice_id"], strict=True)
    ]
    volume = volume.assign(**pd.DataFrame(counts, index=volume.index))
    shown = album(volume, tmp_path, split="test", threshold=0.5, share=share)
    tested = volume[volume["split"] == "test"]
    assert [each["number"] for each in shown] == tested["slice_number"].tolist()
    for each, row in zip(shown, tested.to_dict("records"), strict=True):
        assert each["size"] == (SIZE, SIZE)
        assert each["counts"] == [row["tp"], row["fp"], row["fn"]]
        for name, key in (("right", "tp"), ("false", "fp"), ("missed", "fn")):
            assert filled(each["paths"][name], (SIZE, SIZE)).sum() == row[key]
