"""Device and precision, told or chosen."""

import pytest
import torch

import device
from device import has_fast_bf16, make_fabric, precision_name
from stage import Refusal


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_what_is_told_is_done(precision: device.Precision) -> None:
    fabric = make_fabric("cpu", precision)
    assert (fabric.device.type, precision_name(fabric)) == ("cpu", precision)
    layer = fabric.setup(torch.nn.Linear(4, 4))
    inner: list[torch.dtype] = []
    layer.module.register_forward_hook(lambda *call: inner.append(call[2].dtype))
    assert layer(torch.ones(1, 4)).dtype == torch.float32
    assert inner == [torch.float32 if precision == "32-true" else torch.bfloat16]


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ({"amx_bf16": True}, "bf16-mixed"),
        ({"avx512_bf16": True}, "bf16-mixed"),
        ({"avx512_f": True}, "32-true"),
        ({}, "32-true"),
    ],
)
def test_auto_takes_bf16_where_the_cpu_computes_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], chosen: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision_name(make_fabric("cpu", "auto")) == chosen
    assert not has_fast_bf16(torch.device("mps"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(Refusal, match="compute.device is 'cuda', which this machine"):
        make_fabric("cuda", "auto")
