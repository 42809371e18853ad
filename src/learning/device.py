"""The device and precision that the network computes with, as set in the params or automatic.

If `torchrun` starts a script, its processes share the work, with one device each.
"""

import atexit
import ctypes
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException

from learning.params import ComputeParams
from pipeline.refusals import Refusal

# The bytes of a trained network may depend on the versions of these packages.
PACKAGES = (
    *("albumentations", "lightning-fabric", "numpy", "opencv-python-headless", "pillow"),
    *("segmentation-models-pytorch", "timm", "torch", "torchvision"),
)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether the hardware supports bfloat16; without support it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def keep_freed_memory() -> None:
    """Make glibc reuse the memory of freed tensors; has an effect only on Linux with glibc.

    By default, glibc returns large blocks to the kernel at once and requests them again page by
    page, which takes a sixth of the training time on a CPU.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
        ctypes.CDLL(None).mallopt(mmap_max, 0)
        ctypes.CDLL(None).mallopt(trim_threshold, 2**31 - 1)


def make_deterministic(*, on_gpus: bool) -> None:
    """Make computations reproducible to the bit: always on CPUs, and on GPUs with `on_gpus`."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(on_gpus)
    # Filling new memory is not needed: this code never reads uninitialized memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def make_fabric(compute: ComputeParams) -> Fabric:
    """Return a Fabric on one device, or on one for each process that torchrun started.

    With `auto`, the device is an accelerator if there is one, and the precision is bf16 if the
    hardware supports it. The number of CPU threads decides the order of sums, and so their last
    bits.
    """
    device, precision = compute.device, compute.precision
    if compute.threads != "auto":
        torch.set_num_threads(compute.threads)
    try:
        chosen = Fabric(accelerator=device, devices=1)
    except RuntimeError:
        raise Refusal(
            f"compute.device is {device!r}, but this machine or its PyTorch does not support it; "
            "use auto or cpu"
        ) from None
    if chosen.device.type == "cpu":
        keep_freed_memory()
    if precision == "auto":
        precision = "bf16-mixed" if has_fast_bf16(chosen.device) else "32-true"
    if not torch.distributed.is_torchelastic_launched():
        return Fabric(accelerator=device, devices=1, precision=precision)
    n_local, n_processes = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    try:
        fabric = Fabric(
            accelerator=device,
            devices=n_local,
            num_nodes=n_processes // n_local,
            precision=precision,
            # Each process keeps its own batch-norm statistics, instead of rank 0's.
            strategy=DDPStrategy(forward_sync_buffers=False),
        )
    except MisconfigurationException as error:
        raise Refusal(
            f"torchrun started {n_local} processes here, and each needs its own device: {error}. "
            "Lower --nproc-per-node."
        ) from None
    fabric.launch()
    if fabric.device.type == "cpu":  # otherwise gloo's threads can abort a process as it exits
        atexit.register(torch.distributed.destroy_process_group)
    return fabric


def sum_over_processes(fabric: Fabric, numbers: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes, on the CPU."""
    if fabric.world_size == 1:
        return numbers.cpu()
    summed = numbers.to(fabric.device, copy=True)  # all_reduce works in place
    torch.distributed.all_reduce(summed)
    return summed.cpu()


def precision_name(fabric: Fabric) -> str:
    """Return the precision of a Fabric, such as `bf16-mixed`."""
    return str(fabric.strategy.precision.precision)


def environment(fabric: Fabric) -> dict[str, Any]:
    """Return everything except code, params and inputs that may change a result."""
    on_gpu = fabric.device.type == "cuda"
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name() if on_gpu else fabric.device.type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "precision": precision_name(fabric),
        "threads": torch.get_num_threads(),
        "processes": fabric.world_size,
    }


@contextmanager
def explain_failures(batch_size: str) -> Iterator[None]:
    """Explain errors within the block: out of memory, or a data loader worker that died.

    `batch_size` is the name of the param that determines how much memory the block needs.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Refusal(
            f"{str(error).partition('.')[0]}: lower {batch_size} or train.image_size, or end "
            "other programs that use the GPU (nvidia-smi lists them)"
        ) from None
    except (RuntimeError, ConnectionError, EOFError) as error:
        if "can't allocate memory" in str(error):
            raise Refusal(f"out of memory: lower {batch_size} or train.image_size") from None
        # A worker that dies while it passes on a batch causes an error of its connection.
        if "DataLoader worker" in str(error) or not isinstance(error, RuntimeError):
            raise Refusal(
                f"a data loader worker has died: {error}. The machine may have run out of memory, "
                "or the container's /dev/shm may be too small (enlarge it with `docker run "
                "--shm-size=1g`). Lower compute.workers (0 uses a thread instead) or "
                f"{batch_size}."
            ) from None
        raise
