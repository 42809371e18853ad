"""Where the network computes, and in which precision: Lightning Fabric, told or left to choose.

A script started by `torchrun` shares its work with the other processes, one device each.
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

# What the bytes of a trained network may depend on.
PACKAGES = (
    *("albumentations", "lightning-fabric", "numpy", "opencv-python-headless", "pillow"),
    *("segmentation-models-pytorch", "timm", "torch", "torchvision"),
)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether bfloat16 is computed in hardware; elsewhere it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    return False


def keep_freed_memory() -> None:
    """Let a freed tensor's memory serve the next one; without effect but on Linux with glibc.

    By default glibc hands large blocks back to the kernel at once, and gets them anew page by page:
    a sixth of the time of training on a CPU.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt"):
        mmap_max, trim_threshold = -4, -1  # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h
        ctypes.CDLL(None).mallopt(mmap_max, 0)
        ctypes.CDLL(None).mallopt(trim_threshold, 2**31 - 1)


def repeat_exactly(*, also_on_gpus: bool) -> None:
    """Let the same computation give the same bits; on CPUs it does so anyway."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(also_on_gpus)
    # Nothing here reads memory that nothing has written to.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def make_fabric(compute: ComputeParams) -> Fabric:
    """Return a Fabric on one device, or on one for each process that torchrun started.

    `auto` takes an accelerator, and bf16, where there is one. The number of threads on a CPU
    decides in which order sums are taken, and so on their last bits.
    """
    device, precision = compute.device, compute.precision
    if compute.threads != "auto":
        torch.set_num_threads(compute.threads)
    try:
        chosen = Fabric(accelerator=device, devices=1)
    except RuntimeError:
        raise Refusal(
            f"compute.device is {device!r}, which this machine or its PyTorch lacks; "
            "use auto or cpu"
        ) from None
    if chosen.device.type == "cpu":
        keep_freed_memory()
    if precision == "auto":
        precision = "bf16-mixed" if has_fast_bf16(chosen.device) else "32-true"
    if not torch.distributed.is_torchelastic_launched():
        return Fabric(accelerator=device, devices=1, precision=precision)
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    try:
        fabric = Fabric(
            accelerator=device,
            devices=here,
            num_nodes=everywhere // here,
            precision=precision,
            # Each process keeps its own statistics of batch norm; by default rank 0's would count.
            strategy=DDPStrategy(forward_sync_buffers=False),
        )
    except MisconfigurationException as error:
        raise Refusal(
            f"torchrun started {here} processes here, one for each device, but: {error}"
        ) from None
    fabric.launch()
    if fabric.device.type == "cpu":  # gloo's threads abort a process that ends while they run
        atexit.register(torch.distributed.destroy_process_group)
    return fabric


def total(fabric: Fabric, numbers: torch.Tensor) -> torch.Tensor:
    """Return the sum of a tensor over all processes, on the CPU."""
    if fabric.world_size == 1:
        return numbers.cpu()
    here = numbers.to(fabric.device, copy=True)  # for it is reduced in place
    torch.distributed.all_reduce(here)
    return here.cpu()


def precision_name(fabric: Fabric) -> str:
    """Return the precision that a Fabric computes in, such as `bf16-mixed`."""
    return str(fabric.strategy.precision.precision)


def environment(fabric: Fabric) -> dict[str, Any]:
    """Return what a result depends on besides code, params and inputs."""
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
def explained_failures(batch_size: str) -> Iterator[None]:
    """Say what to do when memory or a process that prepares batches fails within the block.

    `batch_size` is the name of the param that decides how much memory the block takes.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise Refusal(
            f"{str(error).partition('.')[0]}: lower {batch_size} or train.image_size, or free the "
            "GPU of other programs (nvidia-smi lists them)"
        ) from None
    except (RuntimeError, ConnectionError, EOFError) as error:
        if "can't allocate memory" in str(error):
            raise Refusal(f"out of memory: lower {batch_size} or train.image_size") from None
        # Of a process that dies while it hands a batch over, its connection tells.
        if "DataLoader worker" in str(error) or not isinstance(error, RuntimeError):
            raise Refusal(
                f"a process that prepares batches has died: {error}. A system short of memory "
                "kills the largest, and a container may have a small /dev/shm (docker run "
                "--shm-size=1g enlarges it): lower compute.workers (0: a thread does it) or "
                f"{batch_size}"
            ) from None
        raise
