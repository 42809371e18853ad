"""The demo's params teach the network something that no threshold knows."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conftest import ROOT, dvc, make_repository
from manifest import read_manifest
from slices import read_image, read_mask, slice_path


def demo_params() -> list[str]:
    """Return the overrides of `make demo` as its recipe has them."""
    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    found = re.search(r"^DEMO := (.*)$", makefile, re.MULTILINE)
    assert found
    return found[1].split()


def best_flair_threshold(images: Path, masks: Path, slice_ids: list[str]) -> float:
    """Return the highest micro IoU that any threshold on FLAIR reaches on the slices."""
    flair = np.stack([read_image(slice_path(images, s))[..., 1] for s in slice_ids])
    mask = np.stack([read_mask(slice_path(masks, s)) for s in slice_ids])
    return max(
        float(((flair > t) & mask).sum() / ((flair > t) | mask).sum()) for t in range(0, 256, 4)
    )


def test_the_demo_overrides_params_that_exist() -> None:
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    for override in demo_params():
        name, _, value = override.partition("=")
        section, key = name.split(".")
        assert type(yaml.safe_load(value)) is type(params[section][key]), override


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_the_demo_beats_nothing_and_any_threshold(tmp_path: Path, seed: int) -> None:
    folder = make_repository(tmp_path / "repository")
    overrides = [word for p in [*demo_params(), f"seed={seed}"] for word in ("-S", p)]
    done = dvc(folder, "exp", "run", *overrides, OMP_NUM_THREADS="2")
    assert done.returncode == 0, done.stdout + done.stderr
    test = json.loads((folder / "metrics/evaluate.json").read_text())["test"]
    splits = read_manifest(folder / "data/splits.csv")
    slice_ids = splits.loc[splits["split"] == "test", "slice_id"].tolist()
    threshold = best_flair_threshold(
        folder / "data/slices/images", folder / "data/slices/masks", slice_ids
    )
    assert test["iou"] >= 0.5
    assert test["iou"] > 2 * threshold > 0  # always empty scores 0
    assert test["dice_patient_mean"] >= 0.5
