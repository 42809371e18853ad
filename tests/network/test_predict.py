"""The predict stage, with a network of random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import predict
from helpers import SIZE, Data, Outcome, RunStage, predicted
from learning.network import Network
from learning.weights import Model, new_network, save_tensors
from pipeline.outputs import file_sha256
from scans.manifest import read_manifest
from scans.probability_maps import PROBABILITIES, read_levels

QUICK = {"compute__workers": 0, "compute__device": "cpu", "compute__precision": "32-true"}
IMAGE_SIZE = 32  # smaller than a slice


@pytest.fixture
def network(encoder: Path, tmp_path: Path) -> Network:
    """Save and return a network whose probabilities range from near 0 to near 1."""
    network = new_network(encoder, name="mobilenet_v2", frozen=True, context=1).eval()
    head = network.unet.segmentation_head[0]
    torch.nn.init.normal_(head.weight, std=8)
    torch.nn.init.zeros_(head.bias)
    header = Model("mobilenet_v2", file_sha256(encoder), True, IMAGE_SIZE, 1, "none")
    save_tensors(network.trained_tensors(), header, tmp_path / "unet.safetensors")
    return network


def run_predict(run_stage: RunStage, data: Data, folder: Path, out: str, **options: Any) -> Outcome:
    unet = folder / "unet.safetensors"
    inputs = [data.intensities, data.splits, folder / "encoder.safetensors"]
    paths = [*inputs, unet, folder / out]
    overrides = {f"predict__{name}": value for name, value in options.items()}
    return run_stage(predict.main, paths, **QUICK, **overrides)


def probabilities(folder: Path, slice_ids: list[str]) -> np.ndarray:
    return np.stack([PROBABILITIES[read_levels(folder, slice_id)] for slice_id in slice_ids])


def test_every_slice_has_the_networks_probability_at_its_original_size(
    run_stage: RunStage, data: Data, network: Network, tmp_path: Path
) -> None:
    assert run_predict(run_stage, data, tmp_path, "one").code == 0
    ids = read_manifest(data.splits)["slice_id"].tolist()
    assert sorted(path.stem for path in (tmp_path / "one").iterdir()) == sorted(ids)
    stored = probabilities(tmp_path / "one", ids)
    assert stored.shape == (len(ids), SIZE, SIZE)
    logits = predicted(network, data, ids, image_size=IMAGE_SIZE)
    exact = np.stack([1 / (1 + np.exp(-logits[slice_id])) for slice_id in ids])
    assert np.abs(stored - exact).max() < 0.0032
    assert exact.min() < 0.1
    assert exact.max() > 0.9

    for name, batch_size in (("same", 16), ("other", 5)):
        assert run_predict(run_stage, data, tmp_path, name, batch_size=batch_size).code == 0
    for slice_id in ids:
        one, same = (tmp_path / name / f"{slice_id}.png" for name in ("one", "same"))
        assert one.read_bytes() == same.read_bytes()
    np.testing.assert_allclose(probabilities(tmp_path / "other", ids), stored, atol=0.0065)


def test_flips_average_over_the_mirror_image(
    run_stage: RunStage, data: Data, network: Network, tmp_path: Path
) -> None:
    assert run_predict(run_stage, data, tmp_path, "flips", flips=True).code == 0
    ids = read_manifest(data.splits)["slice_id"].tolist()
    stored = probabilities(tmp_path / "flips", ids)

    flipped = predicted(network, data, ids, image_size=IMAGE_SIZE, flips=True)
    plain = predicted(network, data, ids, image_size=IMAGE_SIZE)
    expected = np.stack([1 / (1 + np.exp(-flipped[slice_id])) for slice_id in ids])
    unflipped = np.stack([1 / (1 + np.exp(-plain[slice_id])) for slice_id in ids])
    assert np.abs(stored - expected).max() < 0.0032
    assert np.abs(stored - unflipped).max() > 0.05


def test_a_diverged_network_leaves_no_partial_output(
    run_stage: RunStage, data: Data, network: Network, encoder: Path, tmp_path: Path
) -> None:
    tensors = network.trained_tensors()
    tensors["segmentation_head.0.bias"].fill_(torch.nan)
    header = Model("mobilenet_v2", file_sha256(encoder), True, IMAGE_SIZE, 1, "none")
    save_tensors(tensors, header, tmp_path / "unet.safetensors")
    outcome = run_predict(run_stage, data, tmp_path, "none")
    assert outcome.code == 1
    assert "not finite" in outcome.error
    assert not list(tmp_path.glob("*none*"))
