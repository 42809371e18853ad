"""The network: freezing, and rebuilding it from its files but not from files that do not match."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import load_file, save_file
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import SRC
from learning.decoder import transposed_kernel
from learning.network import Encoder, Network, build_encoder, fold_batch_norms
from learning.optimization import make_loss
from learning.weights import Model, load_encoder, load_network, new_network, save_tensors
from pipeline.outputs import file_sha256
from pipeline.refusals import Refusal


def encoder_file(folder: Path, name: str = "mobilenet_v2", **header: Any) -> Path:
    torch.manual_seed(0)
    path = folder / f"{name}.safetensors"
    save_tensors(build_encoder(name).state_dict(), Encoder(name, **header), path)
    return path


def scans(n_slices: int = 4, size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n_slices, size, size, 3), dtype=torch.uint8, generator=generator)


def take_steps(network: Network, n_steps: int = 3, images: torch.Tensor | None = None) -> None:
    network.train()
    images = scans()[:, None] if images is None else images
    trained = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)
    for _ in range(n_steps):
        network(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "mit_b0"])
def test_a_frozen_encoder_keeps_all_parameters_and_buffers(tmp_path: Path, name: str) -> None:
    path = encoder_file(tmp_path, name)
    network = new_network(path, name=name, frozen=True)
    before = network.trained_tensors()
    take_steps(network)
    kept = load_file(path)
    encoder = network.unet.encoder.state_dict()
    assert encoder.keys() == kept.keys()
    assert all(torch.equal(encoder[key], kept[key]) for key in kept)
    after = network.trained_tensors()
    assert sum(not torch.equal(before[key], after[key]) for key in before) > 20


def test_an_encoder_that_is_not_frozen_is_trained(tmp_path: Path) -> None:
    path = encoder_file(tmp_path)
    network = new_network(path, name="mobilenet_v2", frozen=False)
    take_steps(network)
    kept, encoder = load_file(path), network.unet.encoder.state_dict()
    changed = [key for key in kept if not torch.equal(encoder[key], kept[key])]
    assert any(key.endswith("running_mean") for key in changed)
    assert any(key.endswith("weight") for key in changed)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_frozen_transformer_is_deterministic(tmp_path: Path, mode: str) -> None:
    """smp's own freezing leaves DropPath active, even in evaluation mode."""
    network = new_network(encoder_file(tmp_path, "mit_b0"), name="mit_b0", frozen=True)
    network.train(mode == "train")
    images = scans().float().permute(0, 3, 1, 2)
    first, second = network.unet.encoder(images), network.unet.encoder(images)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    if mode == "eval":
        assert torch.equal(network(scans()[:, None]), network(scans()[:, None]))


def test_the_frozen_encoder_runs_without_a_graph(tmp_path: Path) -> None:
    network = new_network(encoder_file(tmp_path), name="mobilenet_v2", frozen=True).train()
    seen = []
    network.used_encoder.register_forward_hook(lambda *call: seen.append(call[2][-1].requires_grad))
    assert network(scans()[:, None]).requires_grad
    assert seen == [False]


def test_the_encoder_files_normalization_is_used(tmp_path: Path) -> None:
    mean, std = (0.5, 0.4, 0.3), (0.1, 0.2, 0.3)
    path = encoder_file(tmp_path, mean=mean, std=std)
    assert load_encoder(path, "mobilenet_v2")[0] == Encoder("mobilenet_v2", mean, std)
    network = new_network(path, name="mobilenet_v2", frozen=True).eval()
    seen: list[torch.Tensor] = []
    network.used_encoder.register_forward_pre_hook(lambda _, call: seen.append(call[0]))
    logits = network(scans()[:, None])
    assert logits.shape == (4, 64, 64)
    expected = (scans() / 255 - torch.tensor(mean)) / torch.tensor(std)
    torch.testing.assert_close(seen[0], expected.permute(0, 3, 1, 2))


def save_model(network: Network, folder: Path, encoder: Path, **changes: object) -> Path:
    header = {
        "encoder_name": "mobilenet_v2",
        "encoder_sha256": file_sha256(encoder),
        "encoder_frozen": network.frozen,
        "image_size": 64,
        "context": 1 if network.context else 0,
        "normalize": "percentile",
    }
    path = folder / "unet.safetensors"
    save_tensors(network.trained_tensors(), Model(**(header | changes)), path)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("frozen", [True, False])
def test_a_saved_network_is_restored_exactly(tmp_path: Path, frozen: bool) -> None:
    encoder = encoder_file(tmp_path)
    network = new_network(encoder, name="mobilenet_v2", frozen=frozen)
    take_steps(network, 1)
    path = save_model(network, tmp_path, encoder)
    again, model = load_network(path, encoder)
    assert not again.training
    assert model == Model("mobilenet_v2", file_sha256(encoder), frozen, 64, 0, "percentile")
    assert torch.equal(network.eval()(scans()[:, None]), again(scans()[:, None]))
    has_encoder = any(name.startswith("encoder.") for name in load_file(path))
    assert has_encoder is not frozen


@pytest.mark.parametrize("name", ["mobilenet_v2", "mit_b0"])
def test_context_has_no_effect_before_training(tmp_path: Path, name: str) -> None:
    path = encoder_file(tmp_path, name)
    torch.manual_seed(1)
    without_context = new_network(path, name=name, frozen=True).eval()
    torch.manual_seed(1)
    network = new_network(path, name=name, frozen=True, context=1).eval()
    before, middle, after = scans().roll(1, 0), scans(), scans().roll(2, 0)
    stacks = torch.stack([before, middle, after], dim=1)
    expected = without_context(middle[:, None])
    torch.testing.assert_close(network(stacks), expected, rtol=1e-4, atol=1e-4)
    take_steps(network, 2, stacks)
    network.eval()
    assert not torch.allclose(network(stacks), network(torch.stack([middle, middle, after], dim=1)))
    saved = save_model(network, tmp_path, path, encoder_name=name)
    again, model = load_network(saved, path)
    assert model.context == 1
    assert torch.equal(again(stacks), network(stacks))


def test_a_step_copies_nothing_to_the_device(tmp_path: Path) -> None:
    """A CUDA graph cannot capture a tensor that is created in a step: it is copied from the CPU."""
    network = new_network(encoder_file(tmp_path), name="mobilenet_v2", frozen=True, context=1)
    images = scans()[:, None].repeat(1, 3, 1, 1, 1)
    operations: list[str] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            operations.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    loss = make_loss("bce_dice")
    with Watch():  # type: ignore[no-untyped-call]
        loss(network(images), torch.ones(4, 64, 64)).backward()
    assert "convolution" in operations
    copies = {"lift_fresh", "lift_fresh_copy", "_local_scalar_dense"}
    assert set(operations) & copies == set()


def test_the_same_tensors_give_the_same_bytes(tmp_path: Path) -> None:
    encoder = encoder_file(tmp_path)
    digests = set()
    for _ in range(3):
        torch.manual_seed(4)
        network = new_network(encoder, name="mobilenet_v2", frozen=True)
        digests.add(file_sha256(save_model(network, tmp_path, encoder)))
    assert len(digests) == 1


def test_encoder_and_model_files_that_do_not_match_are_an_error(tmp_path: Path) -> None:
    encoder, other = encoder_file(tmp_path), encoder_file(tmp_path, "resnet18")
    with pytest.raises(
        Refusal,
        match=r"resnet18.safetensors does not fit encoder.name 'mobilenet_v2': "
        r"missing .*\b312\b.*; unexpected .*\b120\b.* bn1.bias",
    ):
        load_encoder(other, "mobilenet_v2")
    network = new_network(encoder, name="mobilenet_v2", frozen=True)
    model = save_model(network, tmp_path, encoder)
    with pytest.raises(Refusal, match=r"unet.safetensors .*resnet18.safetensors"):
        load_network(model, other)
    with pytest.raises(
        Refusal,
        match=r"mobilenet_v2.safetensors: .*model file.*encoder_name",
    ):
        load_network(encoder, encoder)
    model = save_model(network, tmp_path, encoder, encoder_frozen=False)
    with pytest.raises(Refusal, match=r"unet.safetensors: .*\b312\b.* encoder\."):
        load_network(model, encoder)


def test_damaged_and_missing_files_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(Refusal, match="a.safetensors: no such file"):
        load_encoder(path, "mobilenet_v2")
    for content in (b"", b"PK\x03\x04 not safetensors", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(Refusal, match="a.safetensors: not a valid safetensors file"):
            load_encoder(path, "mobilenet_v2")
    whole = encoder_file(tmp_path)
    path.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(Refusal, match="a.safetensors: not a valid safetensors file"):
        load_encoder(path, "mobilenet_v2")
    tensors = load_file(whole)
    tensors["features.0.0.weight"] = torch.zeros(1)
    save_file(tensors, path)
    with pytest.raises(Refusal, match=r"a.safetensors .*: .*\b1\b.* features.0.0.weight"):
        load_encoder(path, "mobilenet_v2")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("5", r"a.safetensors: .*\b5\b"),
        ('{"mean": [1, 2], "std": [1, 1, 1]}', r"mean.2: field required"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 0]}', r"std.2: input should be greater than 0"),
        ("{", "a.safetensors: not a valid"),
    ],
)
def test_an_encoder_file_with_a_wrong_header_is_an_error(
    tmp_path: Path, header: str, message: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_file(build_encoder("mobilenet_v2").state_dict(), path, metadata={"network": header})
    with pytest.raises(Refusal, match=message):
        load_encoder(path, "mobilenet_v2")


def test_weights_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    tensors = build_encoder("mobilenet_v2").state_dict()
    tensors["features.0.0.weight"][0] = torch.nan
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(Refusal, match=r"a.safetensors: .*NaN.*\b1\b.* features.0.0.weight"):
        load_encoder(tmp_path / "a.safetensors", "mobilenet_v2")


def test_the_error_for_an_unknown_encoder_lists_similar_names() -> None:
    with pytest.raises(Refusal, match=r"encoder.name is 'mobilenet_v9'.* mobilenet_v2"):
        build_encoder("mobilenet_v9")
    with pytest.raises(Refusal, match="encoder.name is 'tu-nonsense'"):
        build_encoder("tu-nonsense")
    with pytest.raises(Refusal, match="encoder.name is 'tu-vit_tiny_patch16_224'"):
        build_encoder("tu-vit_tiny_patch16_224")


@pytest.mark.parametrize("name", ["mobilenet_v2", "mit_b0", "tu-convnext_atto"])
def test_the_decoder_equals_smps_decoder(name: str) -> None:
    """Values, gradients and names match; mit_b0 and convnext have no features at half size."""
    torch.manual_seed(0)
    optimized = Network(Encoder(name), frozen=True).unet.double()
    plain = smp.Unet(name, encoder_weights=None, classes=1).double()
    plain.load_state_dict(optimized.state_dict())
    plain.encoder.eval()
    optimized.encoder.eval()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    weights = torch.randn(2, 1, 64, 96, dtype=torch.float64)
    results = [unet(images) for unet in (optimized, plain)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-9)
    for result in results:
        (result * weights).sum().backward()
    parameters = zip(optimized.decoder.parameters(), plain.decoder.parameters(), strict=True)
    for found, expected in parameters:
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "densenet121"])
def test_a_folded_encoder_gives_the_same_features(name: str) -> None:
    """In densenet121, some batch norms do not follow a convolution."""
    torch.manual_seed(0)
    network = Network(Encoder(name), frozen=True).double()
    norms = [m for m in network.unet.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:  # an untrained batch norm is nearly the identity
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    network.load_encoder(network.unet.encoder.state_dict())
    network.train()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        plain, used = network.unet.encoder(images), network.used_encoder(images)
    for expected, found in zip(plain, used, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    left = [m for m in network.used_encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(left) < len(norms)
    assert not any(norm.training for norm in left)


def test_a_trained_encoder_is_not_folded(tmp_path: Path) -> None:
    network = new_network(encoder_file(tmp_path), name="mobilenet_v2", frozen=False)
    assert network.used_encoder is network.unet.encoder


def test_an_encoder_that_cannot_be_traced_is_used_unchanged() -> None:
    encoder = build_encoder("mit_b0")  # its code branches on the values of shapes
    assert fold_batch_norms(encoder) is encoder


def test_features_that_do_not_double_are_upsampled_like_in_smp() -> None:
    block = Network(Encoder("mobilenet_v2"), frozen=True).unet.decoder.blocks[0]
    features, skip_connection = torch.randn(1, 1280, 3, 4), torch.randn(1, 96, 7, 8)
    expected = UnetDecoderBlock.forward(block, features, 7, 8, skip_connection)
    torch.testing.assert_close(block(features, 7, 8, skip_connection), expected)


def test_the_transposed_kernel_by_hand() -> None:
    """In one dimension, a single 1 is upsampled by 2 and convolved with the taps a, b, c."""
    kernel = torch.zeros(1, 1, 3, 3)
    kernel[0, 0, 1] = torch.tensor(
        [2.0, 3, 5]
    )  # a, b, c; in the other direction only the middle tap
    assert transposed_kernel(kernel)[0, 0].tolist() == [
        [0, 0, 0, 0],
        [5, 8, 5, 2],
        [5, 8, 5, 2],
        [0, 0, 0, 0],
    ]


def test_a_failed_write_is_an_os_error(tmp_path: Path) -> None:
    """A limit on the file size simulates a full disk: the kernel stops the write."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(SRC)!r})
import torch
from learning.network import Encoder
from learning.weights import Path, save_tensors
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_tensors({{"a": torch.zeros(9999)}}, Encoder("x"), Path({str(tmp_path / "a")!r}))
except OSError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search(rf"{tmp_path}/a: .*File too large", done.stdout)
