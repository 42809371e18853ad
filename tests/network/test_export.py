"""The exported model has the same outputs as the network, for any number of slices."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import export
from helpers import RunStage
from learning.network import Network
from learning.onnx_export import VolumeNetwork, onnx_bytes
from learning.weights import Model, load_network, new_network, save_tensors
from pipeline.outputs import file_sha256
from report_inputs import Inputs

SIZE = 64


def randomized_network(encoder: Path, *, context: int) -> Network:
    """Return a network with random weights, context layers and batch-norm statistics."""
    network = new_network(encoder, name="mobilenet_v2", frozen=True, context=context)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in network.trained_state().items():
            if "context" in name or name.endswith("running_mean"):
                tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
            if name.endswith("running_var"):
                tensor *= 1e6  # more than 16 bits can hold
    return network.eval()


def run_onnx(content: bytes, slices: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    [probabilities] = session.run(["probabilities"], {"slices": slices})
    return np.asarray(probabilities)


@pytest.mark.parametrize(("context", "flips"), [(0, True), (1, False)])
def test_the_file_gives_the_networks_output(encoder: Path, context: int, flips: bool) -> None:
    """For one slice and for several, within the precision of 16-bit weights."""
    network = randomized_network(encoder, context=context)
    metadata = {"model": "{}"}
    content = onnx_bytes(network, image_size=SIZE, flips=flips, metadata=metadata)
    slices = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    for n in (1, 2, 5):
        with torch.inference_mode():
            expected = VolumeNetwork(network, flips=flips)(torch.from_numpy(slices[:n])).numpy()
        found = run_onnx(content, slices[:n])
        assert found.shape == (n, SIZE, SIZE)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=0.02)
        assert np.abs(found - expected).mean() < 0.002
    assert 12e6 < len(content) < 16e6
    assert b".py" not in content
    if context:
        assert content == onnx_bytes(network, image_size=SIZE, flips=flips, metadata=metadata)


def test_each_slice_is_predicted_with_its_neighbors_in_the_volume(encoder: Path) -> None:
    """The output for a slice equals the network's output for its stack of three slices."""
    network = randomized_network(encoder, context=1)
    slices = torch.randint(0, 256, (4, SIZE, SIZE, 3), dtype=torch.uint8)
    with torch.inference_mode():
        found = VolumeNetwork(network, flips=False)(slices)
        for position, stack in enumerate([(0, 0, 1), (0, 1, 2), (1, 2, 3), (2, 3, 3)]):
            expected = torch.sigmoid(network(slices[list(stack)][None]))[0]
            torch.testing.assert_close(found[position], expected, atol=1e-5, rtol=1e-5)


def test_the_stage_writes_the_model_and_its_description(
    inputs: Inputs, encoder: Path, tmp_path: Path, run_stage: RunStage
) -> None:
    network = randomized_network(encoder, context=1)
    model = Model("mobilenet_v2", file_sha256(encoder), True, 48, 1, "percentile")
    save_tensors(network.trained_tensors(), model, tmp_path / "unet.safetensors")
    paths = [
        *(inputs.splits, encoder, tmp_path / "unet.safetensors", inputs.metrics, inputs.evaluated),
        *(tmp_path / "glioma.onnx", tmp_path / "glioma.json"),
    ]
    assert run_stage(export.main, paths, acquire__dataset="phantom").code == 0
    description = json.loads((tmp_path / "glioma.json").read_text())
    scores = json.loads(inputs.metrics.read_text())["test"]
    assert description["test"]["dice_patient_mean"] == scores["dice_patient_mean"]
    assert sum(row["n_patients"] for row in description["test"]["by_missing_sequence"]) == 6
    assert description["license"] == "MIT"
    model_input = description["input"]
    assert (model_input["image_size"], model_input["shape"]) == (48, ["n_slices", 64, 64, 3])
    content = (tmp_path / "glioma.onnx").read_bytes()
    assert description["sha256"].pop("onnx") == file_sha256(tmp_path / "glioma.onnx")
    properties = {item.key: item.value for item in onnx.load_from_string(content).metadata_props}
    assert json.loads(properties["model"]) == description
    slices = np.zeros((3, 64, 64, 3), dtype=np.uint8)
    loaded, _ = load_network(tmp_path / "unet.safetensors", encoder)
    with torch.inference_mode():
        expected = VolumeNetwork(loaded, flips=False)(torch.from_numpy(slices)).numpy()
    np.testing.assert_allclose(run_onnx(content, slices), expected, atol=0.02)
