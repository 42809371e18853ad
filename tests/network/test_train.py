"""Training repeats to the byte, keeps the best epoch and stops at a loss that is not finite."""

import hashlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import nn

import train
from helpers import QUICK, Data, Outcome, RunStage, moved
from learning import captured, optimization
from learning.batches import Batches, BatchMaker, TrainBatch
from learning.epochs import check_losses, take_step, train_epoch
from learning.network import Encoder, Network, build_encoder
from learning.optimization import MovingAverage, Trainer, make_schedule
from learning.params import TrainParams
from learning.weights import load_network, new_network, save_tensors
from pipeline.outputs import file_sha256
from pipeline.refusals import Refusal
from scans.fitted import FittedSlices
from scans.manifest import read_manifest

Train = Callable[..., Outcome]


@pytest.fixture(scope="module")
def data(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Return the phantom with a split of 16 abnormal and 16 healthy slices in each part."""
    splits = tmp_path_factory.mktemp("few") / "splits.csv"
    table = read_manifest(data.splits)
    table.groupby(["split", "abnormal"]).head(16).to_csv(splits, index=False)
    return data._replace(splits=splits)


@pytest.fixture
def train_in(run_stage: RunStage, data: Data, encoder: Path, tmp_path: Path) -> Train:
    """Return a function that trains on the phantom in a folder with the given name."""

    def run(folder: str, splits: Path = data.splits, **overrides: Any) -> Outcome:
        out = tmp_path / folder
        inputs = [data.intensities, splits, encoder]
        paths = [*inputs, out / "unet.safetensors", out / "train"]
        return run_stage(train.main, paths, **(QUICK | overrides))

    return run


def test_the_same_params_give_the_same_bytes_with_any_number_of_workers(
    train_in: Train, tmp_path: Path
) -> None:
    for folder, workers in (("a", 0), ("b", 0), ("c", 2)):
        assert train_in(folder, compute__workers=workers) == Outcome(0, "")
    assert train_in("other", seed=2).code == 0
    digests = {f: file_sha256(tmp_path / f / "unet.safetensors") for f in ("a", "b", "c", "other")}
    assert digests["a"] == digests["b"] == digests["c"] != digests["other"]
    curves = [(tmp_path / f / "train/metrics.json").read_text() for f in ("a", "b", "c")]
    assert curves[0] == curves[1] == curves[2]


def test_curves_and_summary_cover_every_epoch(train_in: Train, tmp_path: Path) -> None:
    assert train_in("a", train__epochs=3).code == 0
    folder = tmp_path / "a/train"
    curves = {
        path.relative_to(folder / "plots/metrics").as_posix(): pd.read_csv(path, sep="\t")
        for path in folder.rglob("*.tsv")
    }
    assert sorted(curves) == ["train/iou.tsv", "train/loss.tsv", "val/iou.tsv"]
    assert all(curve["step"].tolist() == [1, 2, 3] for curve in curves.values())
    summary = json.loads((folder / "metrics.json").read_text())
    val_iou = curves["val/iou.tsv"]["iou"]
    assert summary["kept"]["epoch"] == 3
    assert summary["kept"]["val_iou"] == val_iou.iloc[-1]
    assert summary["train"]["loss"] == curves["train/loss.tsv"]["loss"].iloc[-1]


def test_the_model_file_has_only_the_decoder_unless_the_encoder_is_trained(
    train_in: Train, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    networks: list[Network] = []

    def remember(*paths: Path, **settings: Any) -> Network:
        networks.append(new_network(*paths, **settings))
        return networks[-1]

    monkeypatch.setattr(train, "new_network", remember)
    assert train_in("frozen").code == 0
    assert train_in("tuned", train__epochs=1, encoder__frozen=False).code == 0
    frozen, tuned = (load_file(tmp_path / f / "unet.safetensors") for f in ("frozen", "tuned"))
    assert not [name for name in frozen if name.startswith("encoder.")]
    _, model = load_network(tmp_path / "frozen/unet.safetensors", encoder)
    assert (model.encoder_frozen, model.image_size, model.context) == (True, 48, 1)
    kept = load_file(encoder)
    after = networks[0].unet.encoder.state_dict()  # the network that was trained
    assert all(torch.equal(after[name], kept[name]) for name in kept)
    assert any(not torch.equal(tuned[f"encoder.{name}"], kept[name]) for name in kept)


@pytest.mark.parametrize(("keep", "epoch"), [("best", 2), ("last", 3)])
def test_the_stored_model_is_from_the_epoch_to_keep(
    train_in: Train,
    data: Data,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep: str,
    epoch: int,
) -> None:
    """The second of three epochs gets the best score; its validated tensors are stored."""
    validated: list[dict[str, torch.Tensor]] = []
    validated_ids: list[list[str]] = []
    iou = iter([0.25, 0.75, 0.5])

    def validate(trainer: Trainer, fitted: FittedSlices, _: TrainParams) -> float:
        trainer.network.eval()  # like the real validate
        validated.append(trainer.network.trained_tensors())
        validated_ids.append(fitted.slices.ids)
        return next(iou)

    monkeypatch.setattr(train, "validate", validate)
    assert train_in("a", train__epochs=3, train__keep=keep).code == 0
    stored = load_file(tmp_path / "a/unet.safetensors")
    matches = [all(torch.equal(stored[n], t[n]) for n in stored) for t in validated]
    assert [number + 1 for number, is_same in enumerate(matches) if is_same] == [epoch]
    val_ids = read_manifest(data.splits).query("split == 'val'")["slice_id"].tolist()
    assert [sorted(ids) for ids in validated_ids] == [sorted(val_ids)] * 3
    summary = json.loads((tmp_path / "a/train/metrics.json").read_text())
    assert summary["kept"]["epoch"] == epoch
    assert summary["kept"]["val_iou"] == {2: 0.75, 3: 0.5}[epoch]
    # The decoder's batch norm changes in every epoch, so each epoch starts in training mode.
    name = next(name for name in stored if name.endswith("running_mean"))
    assert not torch.equal(validated[0][name], validated[1][name])
    assert not torch.equal(validated[1][name], validated[2][name])


def test_the_moving_average_is_stored_and_does_not_change_training(
    train_in: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored weights are compared with an average that this test calculates itself."""
    averages: list[torch.Tensor] = []
    curves = []

    def watched(trainer: Trainer, *batch: torch.Tensor) -> torch.Tensor:
        weight = trainer.network.unet.segmentation_head[0].weight
        if not averages:
            averages.append(weight.detach().clone())
        loss = take_step(trainer, *batch)
        n_steps = len(averages)
        decay = min(trainer.average.decay, (1 + n_steps) / (10 + n_steps))
        averages.append(decay * averages[-1] + (1 - decay) * weight.detach())
        return loss

    monkeypatch.setattr(captured, "take_step", watched)
    for folder, average in (("averaged", 0.5), ("plain", 0.0)):
        averages.clear()
        assert train_in(folder, train__average=average).code == 0
        curves.append((tmp_path / folder / "train/plots/metrics/train/loss.tsv").read_text())
        stored = load_file(tmp_path / folder / "unet.safetensors")["segmentation_head.0.weight"]
        torch.testing.assert_close(stored, averages[-1], rtol=0, atol=1e-6)
    assert curves[0] == curves[1]


def test_without_val_the_last_epoch_is_kept(train_in: Train, data: Data, tmp_path: Path) -> None:
    table = read_manifest(data.splits)
    table[table["split"] != "val"].to_csv(tmp_path / "splits.csv", index=False)
    assert train_in("a", tmp_path / "splits.csv") == Outcome(0, "")
    summary = json.loads((tmp_path / "a/train/metrics.json").read_text())
    assert summary["kept"].keys() == {"epoch", "train_loss", "train_iou"}
    assert summary["kept"]["epoch"] == QUICK["train__epochs"]
    assert not (tmp_path / "a/train/plots/metrics/val").exists()


def test_every_step_advances_the_learning_rate_schedule(
    train_in: Train, data: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedules: list[torch.optim.lr_scheduler.LRScheduler] = []

    def remember(*arguments: Any, **settings: Any) -> torch.optim.lr_scheduler.LRScheduler:
        schedules.append(make_schedule(*arguments, **settings))
        return schedules[-1]

    monkeypatch.setattr(optimization, "make_schedule", remember)
    assert train_in("a").code == 0
    n_slices = len(read_manifest(data.splits).query("split == 'train'"))
    assert schedules[0].last_epoch == QUICK["train__epochs"] * (n_slices // 8)


def test_dropout_is_the_same_with_any_number_of_workers(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    """The data loader must not use the random number generator that mit_b0's DropPath uses."""
    encoder = tmp_path / "mit.safetensors"
    torch.manual_seed(0)
    save_tensors(build_encoder("mit_b0").state_dict(), Encoder("mit_b0"), encoder)
    changes = {"encoder__name": "mit_b0", "encoder__frozen": False, "train__batch_size": 16}
    curves = []
    for workers in (0, 2):
        out = tmp_path / f"workers {workers}"
        inputs = [data.intensities, data.splits, encoder]
        paths = [*inputs, out / "unet", out / "train"]
        settings = {**QUICK, **changes, "compute__workers": workers}
        assert run_stage(train.main, paths, **settings).code == 0
        curves.append((out / "train/plots/metrics/train/loss.tsv").read_text())
    assert curves[0] == curves[1]


def test_a_loss_that_is_not_finite_is_an_error_that_names_step_and_slices(
    train_in: Train, data: Data, tmp_path: Path
) -> None:
    outcome = train_in("nan", train__learning_rate=1e30, train__schedule="constant")
    assert outcome.code == 1
    assert re.search(r"the loss is (nan|inf) in epoch 1, step \d+ of ", outcome.error)
    assert "train.learning_rate" in outcome.error
    train_ids = read_manifest(data.splits).query("split == 'train'")["slice_id"]
    assert sum(f"{slice_id}, " in outcome.error for slice_id in train_ids) >= 7
    assert not (tmp_path / "nan/unet.safetensors").exists()


def test_a_worker_that_dies_is_reported_with_its_cause(
    train_in: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def for_a_gpu(*arguments: Any, device: torch.device, **settings: Any) -> Batches:
        return Batches(*arguments, device=torch.device("cuda"), **settings)

    monkeypatch.setattr(train, "Batches", for_a_gpu)
    monkeypatch.setattr(BatchMaker, "__getitem__", die)
    outcome = train_in("a", compute__workers=1)
    assert outcome.code == 1
    # PyTorch reports the signal, or only that the process has ended.
    cause = (
        r"DataLoader worker \(pid(\(s\))? \d+\) (is killed by signal: Killed|exited unexpectedly)"
    )
    assert re.search(cause, outcome.error)
    assert "compute.workers" in outcome.error
    assert "train.batch_size" in outcome.error
    assert "Traceback" not in outcome.error


def test_a_damaged_slice_is_reported_without_a_traceback(
    train_in: Train, data: Data, tmp_path: Path
) -> None:
    images = Path(shutil.copytree(data.images, tmp_path / "images"))
    table = moved(read_manifest(data.splits), image=images)
    table.to_csv(tmp_path / "splits.csv", index=False)
    damaged = Path(table.query("split == 'train'")["image"].iloc[0])
    damaged.write_bytes(damaged.read_bytes()[:999])
    outcome = train_in("a", tmp_path / "splits.csv")
    assert outcome.code == 1
    assert f"error: {damaged}: " in outcome.error
    assert "Traceback" not in outcome.error
    assert len(outcome.error.splitlines()) == 1


def test_only_the_first_bad_loss_is_reported() -> None:
    losses, ids = torch.tensor([1.0, float("inf"), float("nan")]), [["a"], ["b", "c"], ["d"]]
    message = "the loss is inf in epoch 4, step 2 of 3, slices b, c; "
    with pytest.raises(Refusal, match=message):
        check_losses(losses, ids, epoch=4)
    check_losses(losses[:1], ids[:1], epoch=4)


def test_micro_iou_of_an_epoch_counts_pixels_over_batches() -> None:
    """The network returns its input, so the test can calculate the counts by hand."""

    class Echo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return (images[:, 0, ..., 0].float() - 0.5) * self.weight

    def batch(predicted: list[int], reference: list[int]) -> TrainBatch:
        images = torch.tensor(predicted, dtype=torch.uint8).reshape(1, 1, 1, -1, 1)
        masks = torch.tensor([[reference]], dtype=torch.uint8)
        return TrainBatch(images.repeat(1, 1, 1, 1, 3), masks, ["a"])

    network = Echo()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    trainer = Trainer(
        Fabric(accelerator="cpu", devices=1),
        network,  # type: ignore[arg-type]
        network,
        nn.BCEWithLogitsLoss(),
        optimizer,
        make_schedule("constant", optimizer, n_steps=2),
        MovingAverage(network, 0),
        torch.zeros(3, dtype=torch.int64),
    )
    batches = [batch([1, 1, 0, 0], [1, 0, 0, 0]), batch([1, 0, 0, 0], [1, 1, 1, 1])]
    scores = train_epoch(trainer, batches, partial(take_step, trainer), epoch=1)
    assert scores["train/iou"] == pytest.approx((1 + 1) / (2 + 4))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet19", "encoder.name is 'resnet19'"),
        ("resnet18", "encoder.safetensors does not fit encoder.name 'resnet18'"),
    ],
)
def test_an_encoder_with_another_name_is_an_error_and_nothing_is_written(
    train_in: Train, tmp_path: Path, name: str, message: str
) -> None:
    outcome = train_in("bad", encoder__name=name)
    assert outcome.code == 1
    assert message in outcome.error
    assert "Traceback" not in outcome.error
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize("frozen", [True, False])
def test_an_encoder_of_another_fixed_size_is_an_error_before_training(
    train_in: Train, encoder: Path, tmp_path: Path, frozen: bool
) -> None:
    name = "tu-swin_tiny_patch4_window7_224"
    save_tensors(build_encoder(name).state_dict(), Encoder(name), encoder)
    changes = {"encoder__name": name, "encoder__frozen": frozen}
    outcome = train_in("bad", **changes, train__image_size=48)
    assert outcome.code == 1
    assert all(fact in outcome.error for fact in (f"'{name}'", "encoder.name"))
    assert re.search(r"\btrain\.image_size 48\b.*\b64 pixels", outcome.error)
    assert "Traceback" not in outcome.error
    assert not (tmp_path / "bad").exists()


def test_an_empty_val_is_an_error_when_the_best_epoch_is_kept(
    train_in: Train, data: Data, tmp_path: Path
) -> None:
    table = read_manifest(data.splits)
    table[table["split"] != "val"].to_csv(tmp_path / "splits.csv", index=False)
    outcome = train_in("bad", splits=tmp_path / "splits.csv", train__keep="best")
    assert outcome.code == 1
    assert re.search(r"splits.csv: .* val \(0 slices\)", outcome.error)
    assert re.search(r"train\.keep\b.*\blast\b", outcome.error)


@pytest.mark.parametrize("frozen", [True, False])
def test_the_model_file_restores_frozen_and_trained_encoders(
    train_in: Train, encoder: Path, tmp_path: Path, frozen: bool
) -> None:
    settings = {"encoder__frozen": frozen, "train__normalize": "z_score"}
    assert train_in("out", train__epochs=1, **settings).code == 0
    network, model = load_network(tmp_path / "out/unet.safetensors", encoder)
    assert (model.encoder_frozen, model.normalize) == (frozen, "z_score")
    kept, learned = load_file(encoder), network.unet.encoder.state_dict()
    assert all(torch.equal(kept[name], learned[name]) for name in kept) == frozen


def test_each_hyperparameter_changes_the_trained_network(train_in: Train, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"train__repeat": 1},
        {"train__normalize": "percentile"},
        {"train__abnormal_share": 0.9},
        {"train__augment__gamma": 0.5},
        {"train__augment__gain": 0.5},
        {"train__augment__missing": 0.5},
        {"train__context": 0},
        {"train__average": 0},
    ]
    digests = set()
    for number, change in enumerate(changes):
        assert train_in(str(number), train__epochs=1, **change).code == 0
        model = load_file(tmp_path / str(number) / "unet.safetensors")
        content = b"".join(model[name].numpy().tobytes() for name in sorted(model))
        digests.add(hashlib.sha256(content).hexdigest())
    assert len(digests) == len(changes)


class RecordedSteps:
    """Replaces take_step, CUDA graphs and streams; a graph replays the steps that it captured."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.trained: list[float] = []
        self.graph: list[Callable[[], None]] | None = None
        self.failure = failure

    def take_step(self, _: Trainer, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        loss = torch.zeros(())

        def work() -> None:
            self.trained.append(float(images.sum() + masks.sum()))
            loss.fill_(self.trained[-1])

        if self.graph is None:
            work()
        else:
            self.graph.append(work)
        return loss

    @contextmanager
    def capturing(self, graph: "RecordedSteps.Graph", capture_error_mode: str) -> Iterator[None]:
        # In any other mode, the data loader's thread makes the capture fail.
        assert capture_error_mode == "thread_local"
        self.graph = graph.work
        try:
            if self.failure:
                raise self.failure
            yield
        finally:
            self.graph = None

    class Graph:
        def __init__(self) -> None:
            self.work: list[Callable[[], None]] = []

        def replay(self) -> None:
            for work in self.work:
                work()

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(captured, "take_step", self.take_step)
        for name, replacement in {
            "CUDAGraph": self.Graph,
            "graph": self.capturing,
            "Stream": Mock,
            "stream": nullcontext,
            "current_stream": Mock,
        }.items():
            monkeypatch.setattr(torch.cuda, name, replacement)


@pytest.mark.parametrize("failure", [None, RuntimeError("operation not permitted\nat line 3")])
def test_a_captured_step_trains_on_each_batch_once(
    failure: Exception | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    steps = RecordedSteps(failure)
    steps.install(monkeypatch)
    trainer = Mock()
    step = captured.CapturedStep(trainer)
    batches = [torch.full((2, 2), number) for number in range(8)]
    losses = [step(batch, batch) for batch in batches]
    assert steps.trained == [8 * number for number in range(8)]
    assert (
        losses == steps.trained
    )  # separate tensors, though the graph writes all losses to one tensor
    printed = capsys.readouterr().out
    assert printed.endswith(": operation not permitted\n" if failure else "")
    assert bool(printed) == bool(failure)
    assert trainer.optimizer.zero_grad.called == bool(failure)


def test_running_out_of_memory_in_a_capture_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    RecordedSteps(torch.OutOfMemoryError("CUDA out of memory")).install(monkeypatch)
    step, batch = captured.CapturedStep(Mock()), torch.zeros(1)
    for _ in range(captured.WARM_UP):
        step(batch, batch)
    with pytest.raises(torch.OutOfMemoryError):
        step(batch, batch)
