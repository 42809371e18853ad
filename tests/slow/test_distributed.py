"""Two processes under torchrun train as one that takes their micro-batches in turn."""

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
from learning.optimization import Average, make_loss, make_schedule
from learning.params import AugmentParams, TrainParams
from learning.weights import new_network
from scans.fitted import FittedSlices, Slices
from scans.manifest import read_manifest
from scans.normalization import NONE

TwoProcesses = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def two_processes(data: Data, encoder: Path, tmp_path: Path) -> TwoProcesses:
    """Train on the phantom under torchrun, with gloo."""

    def run(
        splits: Path = data.splits, n_machines: int = 1, **overrides: Any
    ) -> subprocess.CompletedProcess[str]:
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params(**(QUICK | overrides))))
        inputs = [data.intensities, splits, encoder]
        paths = [*inputs, "unet.safetensors", "train"]
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        if n_machines == 2:
            meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{free_port()}"]
            torchrun = [*torchrun[:-1], "--nnodes=2", *meeting]
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
        told = [machine.communicate(timeout=300) for machine in machines]
        return subprocess.CompletedProcess(
            command,
            max(machine.returncode for machine in machines),
            "".join(out for out, _ in told),
            "".join(error for _, error in told),
        )

    return run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def in_turn(splits: Path, encoder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train in this process alone: both micro-batches of a step, then the mean of the gradients.

    Each micro-batch has a network of its own, for the running statistics of batch norm.
    """
    train = settings["train"]
    table = read_manifest(splits)
    chosen, val = (
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
    maker = BatchMaker(chosen, context=1, augment=augment, seed=settings["seed"])
    abnormal = chosen.slices.table["abnormal"].to_numpy(dtype=bool)
    orders = [
        BatchOrder(
            len(chosen),
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
    average = Average(first, train["average"])
    trainer = SimpleNamespace(fabric=Fabric(accelerator="cpu", devices=1), network=first)
    curves: dict[str, Any] = {"loss": [], "val": [], "tensors": []}
    for epoch in range(1, train["epochs"] + 1):
        losses = []
        for order, network in zip(orders, networks, strict=True):
            order.epoch = epoch
            network.train()
        for keys in zip(*orders, strict=True):
            for network, own_keys in zip(networks, keys, strict=True):
                batch = maker[own_keys]
                loss = make_loss(train["loss"])(network(batch.images), batch.masks.float())
                loss.backward()
                losses.append(loss.item())
            for own, other in zip(*trained, strict=True):
                assert own.grad is not None
                assert other.grad is not None
                own.grad = own.grad / 2 + other.grad / 2
                other.grad = None
            optimizer.step()
            optimizer.zero_grad()
            rates.step()
            average.update()
            with torch.no_grad():
                for own, other in zip(*trained, strict=True):
                    other.copy_(own)
        for own, other in zip(*(network.buffers() for network in networks), strict=True):
            if own.is_floating_point():
                own.copy_((own + other) / 2)
                other.copy_(own)
        curves["loss"].append(sum(losses) / len(losses))
        with average.in_place():
            score = validate(trainer, val, TrainParams(**train))  # type: ignore[arg-type]
            curves["val"].append(score)
            curves["tensors"].append(first.trained_tensors())
    return curves


@pytest.mark.parametrize(("n_train", "n_val", "n_machines"), [(43, 21, 1), (7, 1, 2)])
def test_two_processes_equal_one_that_takes_their_micro_batches(
    data: Data,
    encoder: Path,
    tmp_path: Path,
    two_processes: TwoProcesses,
    n_train: int,
    n_val: int,
    n_machines: int,
) -> None:
    """43 and 7 slices leave a remainder, 21 and 1 are not divisible by two; 7 fill no batch."""
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
    wanted = in_turn(splits, encoder, params(**(QUICK | {"train__learning_rate": 1e-2})))
    folder = tmp_path / "train/plots/metrics"
    loss = pd.read_csv(folder / "train/loss.tsv", sep="\t")["loss"].tolist()
    val_iou = pd.read_csv(folder / "val/iou.tsv", sep="\t")["iou"].tolist()
    assert loss == pytest.approx(wanted["loss"], abs=1e-5)
    assert val_iou == pytest.approx(wanted["val"], abs=0.01)  # a pixel may round otherwise
    kept = json.loads((tmp_path / "train/metrics.json").read_text())["kept"]["epoch"]
    stored = load_file(tmp_path / "unet.safetensors")
    for name, tensor in wanted["tensors"][kept - 1].items():
        torch.testing.assert_close(stored[name], tensor, rtol=0, atol=1e-4)


def test_a_batch_that_cannot_be_shared_evenly_is_refused(
    two_processes: TwoProcesses, tmp_path: Path
) -> None:
    done = two_processes(train__batch_size=9)
    assert done.returncode != 0
    assert "train.batch_size is 9, which 2 processes cannot share evenly" in done.stderr
    assert not (tmp_path / "train").exists()


def test_what_one_process_refuses_ends_both(
    two_processes: TwoProcesses, data: Data, tmp_path: Path
) -> None:
    done = two_processes(train__learning_rate=1e30, train__schedule="constant")
    assert done.returncode != 0
    assert re.search(r"the loss is (nan|inf) in epoch 1, step \d+ of ", done.stderr)
    assert not (tmp_path / "unet.safetensors").exists()
