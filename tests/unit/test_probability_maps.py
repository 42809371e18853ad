"""Probability maps: precision of the stored probabilities, and errors for other files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit

from pipeline.refusals import Refusal
from scans.probability_maps import (
    PROBABILITIES,
    encode,
    probability_path,
    read_levels,
    write_levels,
)
from scans.tiff import LEVELS


def test_a_stored_probability_is_close_to_the_exact_one() -> None:
    logits = np.linspace(-20, 20, 100_001).astype(np.float32)
    exact = expit(logits.astype(np.float64))
    stored = PROBABILITIES[encode(logits)]
    assert (np.diff(stored) >= 0).all()
    assert np.abs(stored - exact).max() < 0.0031
    ends = np.minimum(exact, 1 - exact) < 1e-3
    assert np.abs(stored - exact)[ends].max() < 2.1e-4
    assert np.abs(stored - exact)[exact < 1e-5].max() < 3e-5
    assert set(np.unique(encode(logits))) == set(range(LEVELS))


def test_a_threshold_of_one_half_is_exact() -> None:
    logits = np.array([-100, -1e-6, 0, 1e-6, 100], dtype=np.float32)
    above = PROBABILITIES[encode(logits)] > 0.5
    assert above.tolist() == [False, False, False, True, True]
    rng = np.random.default_rng(0)
    many = rng.normal(0, 1e-3, 10_000).astype(np.float32)
    np.testing.assert_array_equal(PROBABILITIES[encode(many)] > 0.5, many > 0)


def test_a_mask_of_0_and_255_is_a_map_of_probabilities_0_and_1(tmp_path: Path) -> None:
    assert PROBABILITIES[0] == 0
    assert PROBABILITIES[255] == 1
    mask = np.random.default_rng(1).random((7, 9)) > 0.5
    write_levels(mask.astype(np.uint8) * 255, tmp_path, "A_1")
    np.testing.assert_array_equal(read_levels(tmp_path, "A_1") > 0, mask)


def test_a_map_is_read_as_written_and_its_bytes_are_reproducible(tmp_path: Path) -> None:
    levels = np.random.default_rng(2).integers(0, 256, (20, 31)).astype(np.uint8)
    write_levels(levels, tmp_path, "A_1")
    write_levels(levels, tmp_path, "A_2")
    np.testing.assert_array_equal(read_levels(tmp_path, "A_1"), levels)
    first, second = (probability_path(tmp_path, name).read_bytes() for name in ("A_1", "A_2"))
    assert first == second


def test_the_error_for_an_unreadable_map_names_the_file(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "rgb.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, fact in (
        ("rgb", "mode RGB"),
        ("broken", r"\(UnidentifiedImageError\)"),
        ("none", r"\(FileNotFoundError\); `dvc repro predict`"),
    ):
        with pytest.raises(Refusal, match=fact) as refused:
            read_levels(tmp_path, name)
        assert str(refused.value).startswith(str(tmp_path / f"{name}.png"))
