"""Training speed of `src/train.py` relative to the loop in reference.py.

    python benchmarks/training.py --encoder mobilenet_v2 --image-size 256 --steps 10 --repeats 5

Both loops train the decoder of the same U-Net on the same phantom slices with the same batch size,
each in a separate process, and take turns. In a repeat, each loop trains one epoch of `--steps`
steps. Two epochs before the first repeat are not counted: one for warming up, and one for measuring
memory, which slows training down. The result is the ratio of images per second within a repeat.
With `--without CHANGE`, train.py is not compared to reference.py, but to itself without one of its
optimizations (CHANGES in contenders.py).
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]
import restructure
from contenders import CHANGES, PHASES, Job, make_contender
from learning.network import Encoder, build_encoder
from learning.params import TrainParams
from learning.weights import save_tensors
from measure import PeakMemory
from pipeline.params import check_params, read_yaml
from scans.phantom import MIN_SLICES, write_phantom


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
