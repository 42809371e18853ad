"""Device and precision, set in the params or chosen automatically."""

import os
import socket
from pathlib import Path

import pytest
import torch

from helpers import section
from learning.device import (
    environment,
    explain_failures,
    has_fast_bf16,
    make_deterministic,
    make_fabric,
    precision_name,
)
from learning.params import ComputeParams, Precision
from pipeline.refusals import Refusal


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_set_device_and_precision_are_used(precision: Precision) -> None:
    fabric = make_fabric(section(ComputeParams, device="cpu", precision=precision))
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
def test_auto_uses_bf16_if_the_cpu_supports_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], chosen: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision_name(make_fabric(section(ComputeParams, device="cpu"))) == chosen
    assert not has_fast_bf16(torch.device("mps"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            "CUDA out of memory: .*predict.batch_size .*train.image_size",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            "^out of memory: .*predict.batch_size .*train.image_size",
        ),
        (
            ConnectionResetError(104, "Connection reset by peer"),
            "worker .* reset by peer.*compute.workers .*predict.batch_size",
        ),
    ],
)
def test_the_error_message_names_the_params_to_lower(error: Exception, message: str) -> None:
    with pytest.raises(Refusal, match=message), explain_failures("predict.batch_size"):
        raise error


def test_other_failures_are_passed_on() -> None:
    with pytest.raises(RuntimeError, match="a mistake"), explain_failures("predict.batch_size"):
        raise RuntimeError("a mistake")
    with pytest.raises(Refusal, match=r"^two\nlines$"), explain_failures("predict.batch_size"):
        raise Refusal("two\nlines")


def test_the_environment_describes_what_a_result_depends_on() -> None:
    found = environment(
        make_fabric(section(ComputeParams, device="cpu", precision="32-true", threads=1))
    )
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert (found["device"], found["precision"], found["threads"]) == ("cpu", "32-true", 1)
    assert not {socket.gethostname(), str(Path.home())} & set(map(str, found.values()))


@pytest.mark.parametrize("on_gpus", [True, False])
def test_deterministic_algorithms_on_gpus_are_optional(on_gpus: bool) -> None:
    before = torch.are_deterministic_algorithms_enabled()
    try:
        make_deterministic(on_gpus=on_gpus)
        assert torch.are_deterministic_algorithms_enabled() is on_gpus
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_missing_device_is_an_error() -> None:
    with pytest.raises(Refusal, match="compute.device is 'cuda'"):
        make_fabric(section(ComputeParams, device="cuda"))
