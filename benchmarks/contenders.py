"""The two training loops that training.py compares: that of `src/train.py` and reference.py."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from torch import nn
from torch.utils.data import DataLoader

import reference
from learning import device
from learning.augmentation import augmentation
from learning.batches import Batches, BatchMaker, BatchOrder
from learning.captured import make_step
from learning.device import make_fabric, precision_name
from learning.epochs import train_epoch
from learning.network import Network
from learning.optimization import make_loss, make_schedule, make_trainer, n_trained
from learning.params import ComputeParams, TrainParams, Workers
from learning.weights import new_network
from scans.fitted import FittedSlices, Slices
from scans.names import slice_path, sorted_slices
from scans.normalization import NONE

PHASES = ("wait", "forward", "backward", "step")
# Differences between train.py and the defaults of smp and PyTorch, for --without.
CHANGES = {
    "context": "the slices before and after, with --context 1",
    "decoder": "transposed convolutions instead of upsampling, concatenation and convolution",
    "folding": "batch norm folded into the frozen encoder's convolutions",
    "layout": "channels-last memory layout",
    "memory": "reuse of freed memory by the next tensor; only on CPUs",
    "precision": "bf16 if the hardware supports it",
}


@dataclass(frozen=True)
class Job:
    """The training that both loops do."""

    encoder: str
    device: Any
    precision: Any
    compiled: bool
    workers: Workers
    image_size: int
    batch_size: int
    steps: int
    epochs: int
    seed: int
    params: TrainParams
    folder: Path
    without: str | None  # one of CHANGES

    @property
    def slice_ids(self) -> list[str]:
        """The first slices of the phantom, as many as an epoch needs."""
        names = sorted_slices(self.folder / "images")
        return [name.slice_id for name in names[: self.n_images]]

    @property
    def n_images(self) -> int:
        """The number of slices in an epoch."""
        return self.steps * self.batch_size


class Stopwatch:
    """The seconds that an epoch spends in each phase.

    A GPU computes while the loop continues, so the phases can be distinguished only if
    `synchronizes` is set: the loop then waits for the GPU, which makes the epoch slower.
    """

    def __init__(self, device: torch.device) -> None:
        self.synchronizes, self.device = False, device
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def now(self) -> float:
        """Return the time, after waiting for the GPU if `synchronizes` is set."""
        if self.synchronizes and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time within the block to a phase."""
        begin = self.now()
        yield
        self.seconds[name] += self.now() - begin

    def watch(self, modules: Iterable[nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """Time the calls of modules (forward), of the optimizer (step) and of every backward."""
        begins: list[float] = []

        def start(*_: Any) -> None:
            begins.append(self.now())

        def stop(name: str) -> Callable[..., None]:
            def add(*_: Any) -> None:
                self.seconds[name] += self.now() - begins.pop()

            return add

        for module in modules:
            module.register_forward_pre_hook(start)
            module.register_forward_hook(stop("forward"))
        optimizer.register_step_pre_hook(start)
        optimizer.register_step_post_hook(stop("step"))
        backward = torch.Tensor.backward

        def timed_backward(*arguments: Any, **settings: Any) -> None:
            with self.phase("backward"):
                backward(*arguments, **settings)  # type: ignore[no-untyped-call]

        torch.Tensor.backward = timed_backward  # type: ignore[method-assign]


class TimedBatches:
    """Batches that record the time for which the loop waits for them."""

    def __init__(self, batches: "Batches | DataLoader[Any]", watch: Stopwatch) -> None:
        self.batches, self.watch = batches, watch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self.batches)
        while True:
            with self.watch.phase("wait"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch


@dataclass(frozen=True)
class Contender:
    """One of the two training loops, ready to train."""

    device: torch.device
    description: str
    n_trained: int
    loading_per_s: float
    watch: Stopwatch
    run_epoch: Callable[[int], Any]


def loading_rate(batches: Callable[[], Iterable[Any]], n_images: int) -> float:
    """Return how many images per second one core can load into batches without training."""
    deque(islice(batches(), 1))  # the first batch takes longer
    begin = time.perf_counter()
    deque(batches(), maxlen=0)
    return n_images / (time.perf_counter() - begin)


def undo(change: str, network: Network) -> None:
    """Undo one of CHANGES in a network of the train stage."""
    if change == "decoder":
        for block in network.unet.decoder.blocks:
            block.__class__ = UnetDecoderBlock
    if change == "folding":
        network.used_encoder = network.unet.encoder
    if change == "layout":
        network.to(memory_format=torch.contiguous_format)
        network.used_encoder.register_forward_pre_hook(lambda _, given: (given[0].contiguous(),))


def make_train_loop(job: Job, without: str = "") -> Contender:
    """Return the loop of the train stage, optionally without one of CHANGES."""
    if without == "memory":
        device.keep_freed_memory = lambda: None
    context = 0 if without == "context" else job.params.context
    compute = ComputeParams(
        device=job.device,
        precision="32-true" if without == "precision" else job.precision,
        threads="auto",
        compile=job.compiled,
        workers=job.workers,
    )
    fabric = make_fabric(compute)
    slices = pd.DataFrame({"slice_id": job.slice_ids, "patient_id": ""})
    slices["slice_number"] = range(len(slices))
    for kind in ("image", "mask"):
        slices[kind] = [str(slice_path(job.folder / f"{kind}s", name)) for name in job.slice_ids]
    fitted = FittedSlices(
        Slices(slices), image_size=job.image_size, normalization=NONE, folder=job.folder
    )
    augment = augmentation(job.params.augment)
    maker = BatchMaker(fitted, context=context, augment=augment, seed=job.seed)
    order = BatchOrder(len(fitted), job.batch_size, seed=job.seed)
    loading_per_s = loading_rate(lambda: map(maker.__getitem__, order), job.n_images)
    batches = Batches(maker, order, device=fabric.device, workers=job.workers)
    torch.manual_seed(job.seed)
    network = new_network(
        job.folder / "encoder.safetensors",
        name=job.encoder,
        frozen=True,
        context=context,
    )
    n_steps = job.epochs * job.steps
    trainer = make_trainer(fabric, network, job.params, n_steps=n_steps, compiled=job.compiled)
    undo(without, network)
    watch = Stopwatch(fabric.device)
    watch.watch([trainer.wrapped, trainer.loss_function], trainer.optimizer)

    step = make_step(trainer)

    def run_epoch(epoch: int) -> None:
        order.epoch = epoch
        train_epoch(trainer, TimedBatches(batches, watch), step, epoch=epoch)

    description = precision_name(fabric) + (", compiled" if job.compiled else "")
    return Contender(
        fabric.device, description, n_trained(network), loading_per_s, watch, run_epoch
    )


def make_reference_loop(job: Job) -> Contender:
    """Return the loop of reference.py."""
    torch.manual_seed(job.seed)
    augment = augmentation(job.params.augment)
    augment.set_random_seed(job.seed)
    slices = reference.Slices(
        job.folder / "images", job.folder / "masks", job.slice_ids, job.image_size, augment
    )
    batches = DataLoader(slices, job.batch_size, shuffle=True, drop_last=True)
    loading_per_s = loading_rate(lambda: batches, job.n_images)
    device = Fabric(accelerator=job.device, devices=1).device
    network = reference.make_network(job.encoder, job.folder / "encoder.safetensors").to(device)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=job.params.learning_rate)
    schedule = make_schedule(job.params.schedule, optimizer, n_steps=job.epochs * job.steps)
    loss_function, watch = make_loss(job.params.loss), Stopwatch(device)
    watch.watch([network, loss_function], optimizer)

    def run_epoch(_: int) -> None:
        reference.train_epoch(
            network,
            TimedBatches(batches, watch),  # type: ignore[arg-type]
            loss_function,
            optimizer,
            schedule,
            device,
        )

    return Contender(device, "32-true", n_trained(network), loading_per_s, watch, run_epoch)


def make_contender(name: str, job: Job) -> Contender:
    """Return the contender `train_py` or `reference` (its comparison)."""
    if name == "train_py":
        return make_train_loop(job)
    return make_train_loop(job, job.without) if job.without else make_reference_loop(job)
