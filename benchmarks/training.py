"""Training speed of `src/train.py` relative to the loop in reference.py.

    python benchmarks/training.py --encoder mobilenet_v2 --image-size 256 --steps 10 --repeats 5

Both loops train the decoder of the same U-Net on the same phantom slices with the same batch size,
each in a separate process, and take turns. In a repeat, each loop trains one epoch of `--steps`
steps. Two epochs before the first repeat are not counted: one for warming up, and one for measuring
memory, which slows training down. The result is the ratio of images per second within a repeat.
With `--without CHANGE`, train.py is not compared to reference.py, but to itself without one of its
optimizations (CHANGES below).
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning_fabric import Fabric
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from torch import nn
from torch.utils.data import DataLoader

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]
import reference
import restructure
from learning import device
from learning.augmentation import augmentation
from learning.batches import Batches, BatchMaker, BatchOrder
from learning.captured import make_step
from learning.device import make_fabric, precision_name
from learning.epochs import train_epoch
from learning.network import Encoder, Network, build_encoder
from learning.optimization import make_loss, make_schedule, make_trainer, n_trained
from learning.params import ComputeParams, TrainParams, Workers
from learning.weights import new_network, save_tensors
from measure import PeakMemory
from pipeline.params import check_params, read_yaml
from scans.fitted import FittedSlices, Slices
from scans.names import slice_path, sorted_slices
from scans.normalization import NONE
from scans.phantom import MIN_SLICES, write_phantom

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


def run_contender(name: str, job: Job, pipe: Connection) -> None:
    """Train one epoch for each message and reply with its timings; runs in a separate process."""
    contender = make_contender(name, job)
    device_and_precision = contender.device.type, contender.description
    pipe.send((*device_and_precision, contender.n_trained, contender.loading_per_s))
    watch = contender.watch
    for epoch, watch.synchronizes in iter(pipe.recv, None):
        watch.seconds = dict.fromkeys(PHASES, 0.0)
        begin = time.perf_counter()
        contender.run_epoch(epoch)
        if contender.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        on_gpu = contender.device.type == "cuda"
        gpu_bytes = torch.cuda.max_memory_allocated() if on_gpu else 0
        pipe.send({"epoch_s": seconds, **watch.seconds, "gpu_bytes": gpu_bytes})


class Runner:
    """A contender in a separate process."""

    def __init__(self, name: str, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, child_end = context.Pipe()
        self.process = context.Process(target=run_contender, args=(name, job, child_end))
        self.process.start()
        child_end.close()
        self.device, self.description, self.n_trained, self.loading_per_s = self.pipe.recv()
        self.n_epochs = 0

    def run_epoch(self, synchronizes: bool = False) -> dict[str, float]:
        """Train for one epoch; return its seconds and those of its phases."""
        self.n_epochs += 1
        self.pipe.send((self.n_epochs, synchronizes))
        timings: dict[str, float] = self.pipe.recv()
        return timings

    def warm_up(self) -> dict[str, float]:
        """Return the timings of the first epoch and the peak memory of the second."""
        timings = self.run_epoch()
        with PeakMemory(self.process.pid or 0) as peak:
            self.run_epoch()
        return {**timings, "peak_bytes": peak.bytes}

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.pipe.send(None)
        else:
            self.process.terminate()
        self.process.join()


def measure(job: Job, repeats: int) -> dict[str, Any]:
    """Return the ratio, its range, and the timings of both contenders."""
    with ExitStack() as stack:
        names = ("reference", "train_py")
        runners = {name: stack.enter_context(Runner(name, job)) for name in names}
        return compare(runners, job, repeats)


def compare(runners: dict[str, Runner], job: Job, repeats: int) -> dict[str, Any]:
    """Let the contenders train in turn; return the ratio and the timings of both."""
    if job.without != "context" and len({r.n_trained for r in runners.values()}) > 1:
        raise AssertionError("the contenders do not train the same number of parameters")
    warm_up = {name: runner.warm_up() for name, runner in runners.items()}
    timings: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
    by_phase: dict[str, list[dict[str, float]]] = {name: [] for name in runners}
    for _ in range(repeats):
        for name, runner in runners.items():
            timings[name].append(runner.run_epoch())
            on_gpu = runner.device == "cuda"
            by_phase[name].append(
                runner.run_epoch(synchronizes=True) if on_gpu else timings[name][-1]
            )
    ratios = [
        baseline["epoch_s"] / train_py["epoch_s"]
        for baseline, train_py in zip(timings["reference"], timings["train_py"], strict=True)
    ]
    result: dict[str, Any] = {
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "repeats": repeats,
        "encoder": job.encoder,
        "device": runners["train_py"].device,
        "image_size": job.image_size,
        "batch_size": job.batch_size,
        "steps": job.steps,
        "n_trained": runners["train_py"].n_trained,
        "without": job.without,
    }
    for name, runner in runners.items():
        epochs = [epoch["epoch_s"] for epoch in timings[name]]
        epoch_s = statistics.median(epochs)
        phases = {
            phase: statistics.median(epoch[phase] for epoch in by_phase[name]) for phase in PHASES
        }
        result[name] = {
            "precision": runner.description,
            "images_per_s": job.n_images / epoch_s,
            "images_per_s_low": job.n_images / max(epochs),
            "images_per_s_high": job.n_images / min(epochs),
            "loading_per_s": runner.loading_per_s,
            "epoch_s": epoch_s,
            **{f"{phase}_s": seconds for phase, seconds in phases.items()},
            "waiting_share": statistics.median(
                epoch["wait"] / epoch["epoch_s"] for epoch in by_phase[name]
            ),
            "preparation_s": max(0.0, warm_up[name]["epoch_s"] - epoch_s),
            "peak_memory_mib": warm_up[name]["peak_bytes"] / 2**20,
            "peak_gpu_memory_mib": max(epoch["gpu_bytes"] for epoch in timings[name]) / 2**20,
        }
    return result


def table(result: dict[str, Any]) -> str:
    """Return the result as a readable table."""
    baseline_name = f"no {result['without']}" if result["without"] else "reference"
    lines = [
        f"{result['encoder']}, frozen, {result['n_trained']:,} parameters trained; "
        f"{result['image_size']} px, {result['steps']} steps of {result['batch_size']} per epoch, "
        f"{result['repeats']} repeats, on {result['device']}",
        "",
        f"{'':24} {baseline_name:>16} {'train.py':>16}",
    ]
    train_py, baseline = result["train_py"], result["reference"]
    lines.append(f"{'precision':24} {baseline['precision']:>16} {train_py['precision']:>16}")
    rows = {
        "images/s, median": ("images_per_s", 1),
        "  lowest": ("images_per_s_low", 1),
        "  highest": ("images_per_s_high", 1),
        "loading only, one core": ("loading_per_s", 1),
        "seconds per epoch": ("epoch_s", 2),
        "  waiting for data": ("wait_s", 2),
        "  forward and loss": ("forward_s", 2),
        "  backward": ("backward_s", 2),
        "  optimizer step": ("step_s", 2),
        "extra s of first epoch": ("preparation_s", 2),
        "peak memory, MiB": ("peak_memory_mib", 0),
        "peak GPU memory, MiB": ("peak_gpu_memory_mib", 0),
    }
    lines += [
        f"{title:24} {baseline[key]:16.{digits}f} {train_py[key]:16.{digits}f}"
        for title, (key, digits) in rows.items()
    ]
    lines += [
        "",
        f"train.py waits for data: {train_py['waiting_share']:.1%} of an epoch",
        f"ratio {result['ratio']:.2f} ({result['ratio_low']:.2f} to {result['ratio_high']:.2f})",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="mobilenet_v2")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument(
        "--precision",
        default="auto",
        help="precision of train.py; the reference always uses 32-true",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the network of train.py; the reference is never compiled",
    )
    parser.add_argument(
        "--workers", default="auto", help="data-loader workers of train.py: a number or auto"
    )
    parser.add_argument(
        "--without",
        choices=CHANGES,
        help="compare train.py with itself, without one optimization: "
        + "; ".join(f"{name}: {change}" for name, change in CHANGES.items()),
    )
    parser.add_argument("--image-size", type=int, default=256, help="a multiple of 32")
    parser.add_argument(
        "--context",
        type=int,
        default=0,
        choices=[0, 1],
        help="neighboring slices that train.py uses; the reference uses none",
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="steps per epoch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if arguments.image_size % 32:
        parser.error("--image-size must be a multiple of 32, which the reference needs")
    params = check_params({"train": TrainParams}, read_yaml(ROOT / "params.yaml"))["train"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        patients = -(-arguments.steps * arguments.batch_size // MIN_SLICES)
        write_phantom(
            folder / "raw",
            seed=arguments.seed,
            patients=max(2, patients),
            image_size=arguments.image_size,
        )
        restructure.main(folder / "raw", folder / "images", folder / "masks")
        encoder = Encoder(arguments.encoder)
        torch.manual_seed(arguments.seed)
        tensors = build_encoder(arguments.encoder).state_dict()
        save_tensors(tensors, encoder, folder / "encoder.safetensors")
        n_epochs = 2 + 2 * arguments.repeats  # two to warm up, and on a GPU two for each repeat
        job = Job(
            encoder=arguments.encoder,
            device=arguments.device,
            precision=arguments.precision,
            compiled=arguments.compile,
            workers=arguments.workers if arguments.workers == "auto" else int(arguments.workers),
            image_size=arguments.image_size,
            batch_size=arguments.batch_size,
            steps=arguments.steps,
            epochs=n_epochs,
            seed=arguments.seed,
            params=params.model_copy(update={"context": arguments.context}),
            folder=folder,
            without=arguments.without,
        )
        result = measure(job, arguments.repeats)
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
