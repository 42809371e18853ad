"""Where the network computes, and in which precision: Lightning Fabric, told or left to choose."""

from typing import Literal

import torch
from lightning_fabric import Fabric

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


def make_fabric(device: Device, precision: Precision) -> Fabric:
    """Return a Fabric on one device; `auto` takes an accelerator, and bf16, where there is one."""
    try:
        chosen = Fabric(accelerator=device, devices=1)
    except RuntimeError:
        raise Refusal(
            f"compute.device is {device!r}, which this machine or its PyTorch lacks; "
            "use auto or cpu"
        ) from None
    if precision != "auto":
        return Fabric(accelerator=device, devices=1, precision=precision)
    if has_fast_bf16(chosen.device):
        return Fabric(accelerator=device, devices=1, precision="bf16-mixed")
    return chosen


def precision_name(fabric: Fabric) -> str:
    """Return the precision that a Fabric computes in, such as `bf16-mixed`."""
    return str(fabric.strategy.precision.precision)
