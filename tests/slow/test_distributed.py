"""Two processes under torchrun train like one process that alternates their micro-batches."""

import copy
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from lightning_fabric import Fabric
from safetensors.torch import load_file

from helpers import QUICK, ROOT, Data, params, section
from learning.augmentation import augmentation
from learning.batches import BatchMaker, BatchOrder
from learning.epochs import validate
from learning.optimization import MovingAverage, make_loss, make_schedule
from learning.params import AugmentParams, TrainParams
from learning.weights import new_network
from scans.fitted import FittedSlices, Slices
from scans.manifest import read_manifest
from scans.normalization import NONE

TwoProcesses = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def two_processes(data: Data, encoder: Path, tmp_path: Path) -> TwoProcesses:
    """Return a function that trains on the phantom in two processes under torchrun, with gloo."""

    def run(
        splits: Path = data.splits, n_machines: int = 1, **overrides: Any
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params(**(QUICK | overrides))))
        inputs = [data.intensities, splits, encoder]
        paths = [*inputs, "unet.safetensors", "train"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        if n_machines == 2:
            rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}"]
            torchrun = [*torchrun[:-1], "--nnodes=2", *rendezvous]
        command = [
            *torchrun,
            f"--nproc-per-node={2 // n_machines}",
            str(ROOT / "src/train.py"),
            *map(str, paths),
        ]
        machines = [
            subprocess.Popen(
                command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            for _ in range(n_machines)
        ]
        outputs = [machine.communicate(timeout=300) for machine in machines]
        return subprocess.CompletedProcess(
            command,
            max(machine.returncode for machine in machines),
            "".join(out for out, _ in outputs),
            "".join(error for _, error in outputs),
        )

    return run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def train_alternating(splits: Path, encoder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train in this process: in each step, both micro-batches, then the mean of their gradients.

    Each micro-batch has a separate network, which keeps its running statistics of batch norm.
    """
    train = settings["train"]
    table = read_manifest(splits)
    train_slices, val = (
        FittedSlices(
            Slices(table[table["split"] == split]),
            image_size=train["image_size"],
            normalization=NONE,
            folder=splits.parent,
            keep_original_masks=True,
        )
        for split in ("train", "val")
    )
    augment = augmentation(section(AugmentParams))
    maker = BatchMaker(train_slices, context=1, augment=augment, seed=settings["seed"])
    abnormal = train_slices.slices.table["abnormal"].to_numpy(dtype=bool)
    orders = [
        BatchOrder(
            len(train_slices),
            train["batch_size"],
            seed=settings["seed"],
            abnormal=abnormal,
            abnormal_share=train["abnormal_share"],
            rank=rank,
            world_size=2,
        )
        for rank in (0, 1)
    ]
    torch.manual_seed(settings["seed"])
    first = new_network(encoder, name="mobilenet_v2", frozen=True, context=1)
    first.to(memory_format=torch.channels_last)
    networks = [first, copy.deepcopy(first)]
    trained = [[p for p in network.parameters() if p.requires_grad] for network in networks]
    optimizer = torch.optim.AdamW(
        trained[0], lr=train["learning_rate"], weight_decay=train["weight_decay"], fused=True
    )
    n_steps = train["epochs"] * len(orders[0])
    rates = make_schedule("one_cycle", optimizer, n_steps=n_steps)
    average = MovingAverage(first, train["average"])
    trainer = SimpleNamespace(fabric=Fabric(accelerator="cpu", devices=1), network=first)
    curves: dict[str, Any] = {"loss": [], "val": [], "tensors": []}
    for epoch in range(1, train["epochs"] + 1):
        losses = []
        for order, network in zip(orders, networks, strict=True):
            order.epoch = epoch
            network.train()
        for keys in zip(*orders, strict=True):
            for network, network_keys in zip(networks, keys, strict=True):
                batch = maker[network_keys]
                loss = make_loss(train["loss"])(network(batch.images), batch.masks.float())
                loss.backward()
                losses.append(loss.item())
            for a, b in zip(*trained, strict=True):
                assert a.grad is not None
                assert b.grad is not None
                a.grad = a.grad / 2 + b.grad / 2
                b.grad = None
            optimizer.step()
            optimizer.zero_grad()
            rates.step()
            average.update()
            with torch.no_grad():
                for a, b in zip(*trained, strict=True):
                    b.copy_(a)
        for a, b in zip(*(network.buffers() for network in networks), strict=True):
            if a.is_floating_point():
                a.copy_((a + b) / 2)
                b.copy_(a)
        curves["loss"].append(sum(losses) / len(losses))
        with average.applied():
            score = validate(trainer, val, TrainParams(**train))  # type: ignore[arg-type]
            curves["val"].append(score)
            curves["tensors"].append(first.trained_tensors())
    return curves


@pytest.mark.parametrize(("n_train", "n_val", "n_machines"), [(43, 21, 1), (7, 1, 2)])
def test_two_processes_equal_one_with_the_same_micro_batches(
    data: Data,
    encoder: Path,
    tmp_path: Path,
    two_processes: TwoProcesses,
    n_train: int,
    n_val: int,
    n_machines: int,
) -> None:
    """43 and 7 slices leave a remainder, 7 do not fill a batch, and 21 and 1 are odd."""
    table = read_manifest(data.splits)
    splits = tmp_path / "splits.csv"
    # Slices with tumor first, so that the IoU of a single one is defined.
    table = table.sort_values("tumor_area", ascending=False, kind="stable")
    few = {"train": n_train, "val": n_val}
    pd.concat(table[table["split"] == split].head(n) for split, n in few.items()).to_csv(
        splits, index=False
    )
    done = two_processes(splits, n_machines, train__learning_rate=1e-2)
    assert done.returncode == 0, done.stderr
    assert "on 2 × cpu in 32-true" in done.stdout
    assert done.stdout.count("epoch 1/2") == 1
    expected = train_alternating(
        splits, encoder, params(**(QUICK | {"train__learning_rate": 1e-2}))
    )
    folder = tmp_path / "train/plots/metrics"
    loss = pd.read_csv(folder / "train/loss.tsv", sep="\t")["loss"].tolist()
    val_iou = pd.read_csv(folder / "val/iou.tsv", sep="\t")["iou"].tolist()
    assert loss == pytest.approx(expected["loss"], abs=1e-5)
    assert val_iou == pytest.approx(expected["val"], abs=0.01)  # a pixel may be rounded differently
    kept = json.loads((tmp_path / "train/metrics.json").read_text())["kept"]["epoch"]
    stored = load_file(tmp_path / "unet.safetensors")
    for name, tensor in expected["tensors"][kept - 1].items():
        torch.testing.assert_close(stored[name], tensor, rtol=0, atol=1e-4)


def test_a_batch_that_cannot_be_shared_evenly_is_an_error(
    two_processes: TwoProcesses, tmp_path: Path
) -> None:
    done = two_processes(train__batch_size=9)
    assert done.returncode != 0
    assert "train.batch_size is 9, which 2 processes" in done.stderr
    assert not (tmp_path / "train").exists()


def test_an_error_in_one_process_ends_both(
    two_processes: TwoProcesses, data: Data, tmp_path: Path
) -> None:
    done = two_processes(train__learning_rate=1e30, train__schedule="constant")
    assert done.returncode != 0
    assert re.search(r"the loss is (nan|inf) in epoch 1, step \d+ of ", done.stderr)
    assert not (tmp_path / "unet.safetensors").exists()
