"""The benchmarks run as documented and print what they measured."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from segmentation_models_pytorch import Unet

from contenders import undo
from helpers import ROOT, Data
from learning.decoder import DecoderBlock
from learning.weights import new_network
from measure import PeakMemory, growth, run_command
from reference import Slices, make_network, validate
from scans.manifest import read_manifest


def test_growth_is_the_exponent_of_size() -> None:
    sizes = [110, 330, 1100]
    assert growth(sizes, [7 * size**1.3 for size in sizes]) == pytest.approx(1.3)
    assert growth(sizes, [5, 5, 5]) == pytest.approx(0)


def test_peak_memory_includes_child_processes(tmp_path: Path) -> None:
    child = "import time; block = b'x' * (200 << 20); time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    seconds, occupied = run_command([sys.executable, "-c", parent], str(tmp_path))
    assert 1 < seconds < 60
    assert 200 < occupied / 2**20 < 300
    with pytest.raises(RuntimeError, match=r"\b3$"):
        run_command([sys.executable, "-c", "raise SystemExit(3)"], str(tmp_path))


def test_peak_memory_of_an_ended_process_is_zero() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    peak = PeakMemory(child.pid)
    child.communicate(b"\n")
    with peak:
        pass
    assert peak.bytes == 0


def test_the_reference_trains_only_the_decoder_and_counts_all_pixels(
    data: Data, encoder: Path
) -> None:
    network = make_network("mobilenet_v2", encoder)
    assert isinstance(network, Unet)
    assert {p.requires_grad for p in network.encoder.parameters()} == {False}
    assert all(p.requires_grad for p in network.decoder.parameters())
    ids = read_manifest(data.splits).query("abnormal == 1")["slice_id"].tolist()[:5]
    slices = Slices(data.images, data.masks, ids, 64)
    image, mask = slices[0]
    assert image.shape == (3, 64, 64)
    assert mask.shape == (64, 64)
    assert set(np.unique(mask)) == {0, 1}

    class AllTumor(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.ones(len(images), 1, 64, 64)

    share = float(np.mean([slices[i][1].numpy() for i in range(5)]))
    batches = torch.utils.data.DataLoader(slices, 2)
    assert validate(AllTumor(), batches, torch.device("cpu")) == pytest.approx(share)


def test_the_training_benchmark_prints_what_it_measured(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks/training.py"), "--device=cpu", "--workers=1"]
    sizes = ["--image-size=32", "--batch-size=4", "--steps=2", "--repeats=2"]
    done = subprocess.run(
        [*command, *sizes, f"--json={tmp_path}/speed.json"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "speed.json").read_text())
    assert result["n_trained"] == 4_405_073
    assert result["ratio_low"] <= result["ratio"] <= result["ratio_high"]
    assert f"ratio {result['ratio']:.2f} (" in done.stdout
    for name in ("reference", "train_py"):
        timings = result[name]
        assert timings["images_per_s"] == pytest.approx(8 / timings["epoch_s"])
        speeds = [timings[f"images_per_s{end}"] for end in ("_low", "", "_high")]
        assert speeds == sorted(speeds)
        phases = [timings[f"{phase}_s"] for phase in ("wait", "forward", "backward", "step")]
        assert all(seconds > 0 for seconds in phases)
        assert timings["peak_memory_mib"] > 100
        assert timings["loading_per_s"] > 0
    assert (result["reference"]["precision"], result["device"]) == ("32-true", "cpu")


@pytest.mark.parametrize("change", ["decoder", "folding", "layout"])
def test_undoing_an_optimization_does_not_change_the_result(encoder: Path, change: str) -> None:
    network = new_network(encoder, name="mobilenet_v2", frozen=True).eval()
    network.to(memory_format=torch.channels_last)
    images = torch.randint(0, 256, (2, 1, 64, 64, 3), dtype=torch.uint8)
    layouts: list[bool] = []
    network.unet.segmentation_head.register_forward_pre_hook(
        lambda _, given: layouts.append(given[0].is_contiguous())
    )
    with torch.no_grad():
        before = network(images)
        undo(change, network)
        torch.testing.assert_close(network(images), before, rtol=0, atol=1e-4)
    undone = {
        "decoder": not any(isinstance(b, DecoderBlock) for b in network.unet.decoder.blocks),
        "folding": network.used_encoder is network.unet.encoder,
        "layout": layouts == [False, True],
    }
    assert [name for name, is_undone in undone.items() if is_undone] == [change]


def test_the_volumes_benchmark_prints_what_it_measured(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks/volumes.py"), "--patients", "2", "4"),
            *("--shape", "24", "24", "12", f"--json={tmp_path}/volumes.json"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "volumes.json").read_text())
    assert list(result["costs"]) == ["2", "4"]
    for size, cost in result["costs"].items():
        row = f"{size:>10}{cost['seconds']:10.1f}{cost['memory_mib']:10.0f}"
        assert row in done.stdout.splitlines()


def test_the_tasks_benchmark_measures_each_number_of_machines() -> None:
    options = ("--machines", "1", "2", "--tasks", "20", "--listed", "50", "--repeats", "1")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/tasks.py"), *options],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    starts = ("machines: 1;", "head and driver:", "machines: 2;")
    assert len(lines) == 3
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True))
    for line in (lines[0], lines[2]):
        assert float(line.split()[2]) > 0


def test_the_data_stages_benchmark_prints_what_it_measured(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "benchmarks/data_stages.py"), "--patients", "12", "24"),
            *("--image-size=32", "--repeats=1", f"--json={tmp_path}/stages.json"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "stages.json").read_text())
    for costs in result["stages"].values():
        stages = [costs[name] for name in ("acquire", "restructure", "build_manifest", "split")]
        assert costs["to_split"]["seconds"] == pytest.approx(sum(s["seconds"] for s in stages))
        assert costs["to_split"]["memory_mib"] == max(s["memory_mib"] for s in stages)
    assert result["no_work"]["ratio"] == pytest.approx(
        result["no_work"]["repro_s"] / result["no_work"]["status_s"]
    )
    assert f"dvc status {result['no_work']['status_s']:.2f} s" in done.stdout
