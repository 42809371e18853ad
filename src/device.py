"""Where the network computes, and in which precision: Lightning Fabric, told or left to choose.

A script started by `torchrun` shares its work with the other processes, one device each.
"""

import ctypes
import os
import sys
from typing import Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.utilities.exceptions import MisconfigurationException

from stage import Refusal

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]


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


def make_fabric(device: Device, precision: Precision) -> Fabric:
    """Return a Fabric on one device, or on one for each process that torchrun started.

    `auto` takes an accelerator, and bf16, where there is one.
    """
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
