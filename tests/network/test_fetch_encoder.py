"""The encoder's weights are fetched from each of their sources."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

import fetch_encoder
from helpers import ROOT, Outcome, RunStage, params
from learning.network import build_encoder
from learning.weights import load_encoder
from pipeline.outputs import file_sha256
from servers import hub, serving


@pytest.fixture(autouse=True)
def no_local_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ENCODER_WEIGHTS", raising=False)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Return a weights file like the hub's, with tensors and no header."""
    torch.manual_seed(9)
    path = tmp_path / "model.safetensors"
    save_file(build_encoder("mobilenet_v2").state_dict(), path)
    return path


def outputs(tmp_path: Path) -> list[Path]:
    return [tmp_path / "models/encoder.safetensors", tmp_path / "metrics/fetch_encoder.json"]


def fetch(run_stage: RunStage, tmp_path: Path, **overrides: object) -> Outcome:
    return run_stage(fetch_encoder.main, outputs(tmp_path), **overrides)


def test_random_weights_follow_the_seed(run_stage: RunStage, tmp_path: Path) -> None:
    encoder, metrics = outputs(tmp_path)
    digests = []
    for seed in (1, 1, 2):
        assert fetch(run_stage, tmp_path, encoder__weights="none", seed=seed).code == 0
        digests.append(file_sha256(encoder))
        assert json.loads(metrics.read_text()) == {
            "name": "mobilenet_v2",
            "weights": "none",
            "sha256": digests[-1],
            "n_parameters": 2223872,
        }
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("setting", ["ENCODER_WEIGHTS", "encoder.weights"])
def test_a_local_copy_is_copied_byte_for_byte(
    run_stage: RunStage,
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    setting: str,
) -> None:
    encoder, metrics = outputs(tmp_path)
    overrides = {}
    if setting == "ENCODER_WEIGHTS":
        monkeypatch.setenv("ENCODER_WEIGHTS", str(weights))
    else:
        overrides = {"encoder__weights": str(weights)}
    assert fetch(run_stage, tmp_path, **overrides).code == 0
    assert encoder.read_bytes() == weights.read_bytes()
    assert json.loads(metrics.read_text())["sha256"] == file_sha256(weights)


def test_a_local_copy_of_another_encoder_is_an_error(
    run_stage: RunStage, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCODER_WEIGHTS", str(weights))
    outcome = fetch(run_stage, tmp_path, encoder__name="resnet18")
    assert outcome.code == 1
    assert f"{weights} does not fit encoder.name 'resnet18': " in outcome.error
    assert "Set encoder.weights or ENCODER_WEIGHTS" in outcome.error
    assert "Traceback" not in outcome.error
    monkeypatch.setenv("ENCODER_WEIGHTS", str(tmp_path / "nowhere.safetensors"))
    outcome = fetch(run_stage, tmp_path)
    assert (outcome.code, "nowhere.safetensors: no such file" in outcome.error) == (1, True)
    assert not outputs(tmp_path)[0].exists()


def test_the_hubs_config_next_to_a_local_copy_sets_its_normalization(
    run_stage: RunStage, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCODER_WEIGHTS", str(weights))
    config = weights.with_name("config.json")
    settings = {"mean": [127.5, 0, 51], "std": [51, 51, 51], "input_range": [0, 255]}
    config.write_text(json.dumps(settings))
    assert fetch(run_stage, tmp_path).code == 0
    encoder, tensors = load_encoder(outputs(tmp_path)[0], "mobilenet_v2")
    assert (encoder.mean, encoder.std) == ((0.5, 0, 0.2), (0.2, 0.2, 0.2))
    assert all(torch.equal(tensors[name], t) for name, t in load_file(weights).items())
    for text, message in (
        ('{"mean": 1}', "config.json: "),
        ("[", "config.json: "),
        (json.dumps({**settings, "input_space": "BGR"}), "error: 'mobilenet_v2' needs BGR input"),
    ):
        config.write_text(text)
        outcome = fetch(run_stage, tmp_path)
        assert (outcome.code, message in outcome.error) == (1, True), outcome.error


def run_as_process(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a process: the hub's client reads its environment when it is imported."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params()))
    home = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run(
        [sys.executable, ROOT / "src/fetch_encoder.py", *outputs(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, **home, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imagenet_weights_come_from_the_hub_with_their_normalization(
    tmp_path: Path, weights: Path
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    weights.rename(repository / "model.safetensors")
    settings = {"mean": [0.5, 0.25, 0.125], "std": [0.5, 0.5, 0.25], "input_range": [0, 1]}
    (repository / "config.json").write_text(json.dumps({**settings, "input_space": "RGB"}))
    handler = hub(repository)
    with serving(handler) as address:
        done = run_as_process(tmp_path, HF_ENDPOINT=address)
    assert done.returncode == 0, done.stderr
    assert any("smp-hub/mobilenet_v2.imagenet/resolve/" in path for path in handler.requests)
    encoder, tensors = load_encoder(outputs(tmp_path)[0], "mobilenet_v2")
    assert (encoder.mean, encoder.std) == ((0.5, 0.25, 0.125), (0.5, 0.5, 0.25))
    published = load_file(repository / "model.safetensors")
    assert all(torch.equal(tensors[name], published[name]) for name in published)


def test_without_network_and_copy_the_message_lists_three_solutions(tmp_path: Path) -> None:
    done = run_as_process(tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "the weights of 'mobilenet_v2'" in done.stderr
    assert fetch_encoder.DOWNLOAD_HINT in done.stderr
    assert "Traceback" not in done.stderr
    assert not outputs(tmp_path)[0].exists()
