"""The U-Net with its encoder, frozen or not, and the files that it is stored in and rebuilt from.

An encoder file holds every tensor of an smp encoder and how its input is normalized. A model file
holds what was trained: the decoder and head alone when the encoder is frozen, everything otherwise,
and in its header what rebuilds the network. Both are safetensors: loading them executes nothing.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import segmentation_models_pytorch as smp
import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional

from pipeline.command import Refusal
from pipeline.outputs import file_sha256

Tensors = dict[str, torch.Tensor]
FEW_PIXELS = 64  # of a feature map, up to which its kernel is not worth transforming
TUMOR_PRIOR = 0.01  # probability of tumor that an untrained network gives
Positive = Annotated[float, Field(gt=0)]
ImageSize = Annotated[int, Field(ge=32, le=4096)]  # pixels of the longer side of a slice
Normalize = Literal["none", "percentile", "median", "z_score"]  # what intensity.py makes of scans
Header = TypeVar("Header", "Encoder", "Model")
HEADER = "network"  # one key, for the order of several in a safetensors header varies


@dataclass(frozen=True)
class Encoder:
    """An encoder's name among those of smp, and the mean and deviation of its input in [0, 1]."""

    name: str
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Model:
    """What rebuilds a trained network beside its tensors."""

    encoder_name: str
    encoder_sha256: str
    encoder_frozen: bool
    image_size: ImageSize
    normalize: Normalize


def build_encoder(name: str) -> nn.Module:
    """Return an smp encoder with random weights; refuse a name that smp does not know."""
    try:
        encoder: nn.Module = smp.encoders.get_encoder(name, weights=None)
    except Exception:  # timm raises many kinds for models that are no encoder of feature maps
        known = smp.encoders.get_encoder_names()
        close = [other for other in known if other[:4] == name[:4]] or known[:8]
        raise Refusal(
            f"encoder.name is {name!r}, which segmentation-models-pytorch cannot build; "
            f"it has {len(known)}, among them {', '.join(close)}, and timm's as `tu-<name>`"
        ) from None
    return encoder


def transposed_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """Return the kernel (I, O, 4, 4) that does in one go what enlarging and convolving do in two.

    For a kernel (O, I, 3, 3), a transposed convolution of stride 2 and padding 1 with the result
    equals a convolution of padding 1 over the image with each pixel doubled in both directions:
    each output pixel sees two of the three taps fall on the same pixel, so that their sum serves.
    """
    taps = kernel.new_tensor([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])
    return torch.einsum("ra,cb,oiab->iorc", taps, taps, kernel)


class DecoderBlock(UnetDecoderBlock):  # type: ignore[misc]
    """smp's block of a U-Net's decoder, with 1.6 times fewer multiplications for the same result.

    Large features are never upsampled, none are joined with the encoder's in memory, and the
    gradient with regard to a frozen encoder's features is never computed.
    """

    def forward(
        self,
        features: torch.Tensor,
        height: int,
        width: int,
        skip_connection: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return features (N, O, height, width) of (N, I, H, W) and the encoder's of that size."""
        if (height, width) != (2 * features.shape[2], 2 * features.shape[3]):
            result: torch.Tensor = super().forward(features, height, width, skip_connection)
            return result
        convolution, *norm_and_relu = self.conv1
        n_below, n_all = features.shape[1], convolution.in_channels
        from_below, from_beside = convolution.weight.split([n_below, n_all - n_below], dim=1)
        if features.shape[2] * features.shape[3] <= FEW_PIXELS:
            doubled = functional.interpolate(features, scale_factor=2.0, mode="nearest")
            x = functional.conv2d(doubled, from_below, convolution.bias, padding=1)
        else:
            x = functional.conv_transpose2d(
                features, transposed_kernel(from_below), convolution.bias, stride=2, padding=1
            )
        if skip_connection is not None and from_beside.shape[1]:
            x = x + functional.conv2d(skip_connection, from_beside, padding=1)
        for layer in (*norm_and_relu, self.conv2):
            x = layer(x)
        return x


def folded(encoder: nn.Module) -> nn.Module:
    """Return a copy of an encoder with each batch norm folded into the convolution before it.

    In evaluation mode the two are one linear map. An encoder whose code torch.fx cannot follow is
    returned as it is.
    """
    try:
        copy: nn.Module = fuse(encoder.eval())
    except Exception:  # whatever its code makes of the stand-ins that torch.fx sends through it
        return encoder
    return copy


class Network(nn.Module):
    """A U-Net from uint8 scans (N, S, S, 3) to logits (N, S, S); S is a multiple of 32.

    A frozen encoder stays in evaluation mode and runs without a graph. `requires_grad = False`
    alone would let its batch-norm statistics drift, and smp's own freezing leaves the DropPath of
    transformers on. Thawed, its weights learn; it stays in evaluation mode, so that the decoder
    meets no other features at that moment.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, encoder: Encoder, *, frozen: bool) -> None:
        super().__init__()
        self.unet = smp.Unet(encoder.name, encoder_weights=None, classes=1)
        for block in self.unet.decoder.blocks:
            block.__class__ = DecoderBlock
        # Begin where most pixels are no tumor (Lin et al., Focal Loss, ICCV 2017, section 4.1):
        # from one half, the first epoch would learn little else.
        prior = torch.tensor(TUMOR_PRIOR)
        nn.init.constant_(self.unet.segmentation_head[0].bias, float(torch.logit(prior)))
        self.frozen, self.steady = frozen, frozen  # steady: the encoder in evaluation mode
        self.unet.encoder.requires_grad_(not frozen)
        self.used_encoder = self.unet.encoder
        self.register_buffer("mean", 255 * torch.tensor(encoder.mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(encoder.std), persistent=False)

    def train(self, mode: bool = True) -> "Network":
        """Set training or evaluation mode; an encoder that is or was frozen stays in evaluation."""
        super().train(mode)
        if self.steady:
            self.unet.encoder.eval()
            self.used_encoder.eval()
        return self

    def load_encoder(self, tensors: Tensors) -> None:
        """Set the encoder's tensors; a frozen one computes with a copy that is faster."""
        self.unet.encoder.load_state_dict(tensors)
        if self.frozen:
            self.used_encoder = folded(self.unet.encoder)

    def thaw(self) -> None:
        """Let a frozen encoder learn from now on."""
        self.frozen = False
        self.unet.encoder.requires_grad_(True)
        self.used_encoder = self.unet.encoder

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, S, S) of scans (N, S, S, 3) uint8."""
        normalized = (images.float() - self.mean) / self.std
        channels_last = normalized.permute(0, 3, 1, 2)  # (N, 3, S, S), strides as they are
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.used_encoder(channels_last)
        logits: torch.Tensor = self.unet.segmentation_head(self.unet.decoder(features))
        return logits[:, 0]

    def trained_tensors(self) -> Tensors:
        """Return copies of what training changes, buffers included, on the CPU."""
        return {
            name: tensor.detach().clone().contiguous().cpu()
            for name, tensor in self.unet.state_dict().items()
            if not (self.frozen and name.startswith("encoder."))
        }


def save_tensors(tensors: Tensors, header: Encoder | Model | dict[str, Any], path: Path) -> None:
    """Write tensors and header; the same ones give the same bytes."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = header if isinstance(header, dict) else asdict(header)
    save_file(contiguous, path, metadata={HEADER: json.dumps(content)})


def load_tensors(path: Path, way_out: str) -> tuple[Tensors, dict[str, Any]]:
    """Return a safetensors file's tensors and what its header says under HEADER.

    Refuses a file that is missing or damaged, with a `way_out` for the person who reads it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            if not isinstance(header, dict):
                raise Refusal(
                    f"{path}: its header is {header!r}, written by another program. {way_out}"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError:
        raise Refusal(f"{path}: no such file. {way_out}") from None
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise Refusal(f"{path}: not a sound safetensors file ({error}). {way_out}") from None


def checked_header(kind: type[Header], header: dict[str, Any], path: Path, way_out: str) -> Header:
    """Return what a file's header says, if it is of that kind."""
    try:
        checked: Header = TypeAdapter(kind).validate_python(header)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Refusal(
            f"{path}: its header is not that of this repository's {kind.__name__.lower()} "
            f"({place}: {first['msg'].lower()}). {way_out}"
        ) from None
    return checked


def mismatch(wanted: Tensors, found: Tensors) -> str:
    """Return how tensors differ in name or shape from those wanted; empty when they do not."""
    lacking, foreign = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [
        name
        for name in sorted(wanted.keys() & found.keys())
        if wanted[name].shape != found[name].shape
    ]
    differences = {"lacking": lacking, "foreign": foreign, "of another shape": shapes}
    return "; ".join(
        f"{len(names)} tensors {what}, such as {names[0]}"
        for what, names in differences.items()
        if names
    )


def load_encoder(
    path: Path, name: str, way_out: str = "Run `dvc repro fetch_encoder`."
) -> tuple[Encoder, Tensors]:
    """Return the encoder file's header and tensors; refuse a file of another encoder."""
    tensors, header = load_tensors(path, way_out)
    problem = mismatch(build_encoder(name).state_dict(), tensors)
    if problem:
        raise Refusal(f"{path} does not fit encoder.name {name!r}: {problem}. {way_out}")
    bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise Refusal(f"{path}: {len(bad)} tensors not finite, such as {bad[0]}. {way_out}")
    own = {key: value for key, value in header.items() if key in ("mean", "std")}
    return checked_header(Encoder, own | {"name": name}, path, way_out), tensors


def new_network(encoder_file: Path, *, name: str, frozen: bool) -> Network:
    """Return a network with the file's encoder and a decoder drawn from torch's global seed."""
    encoder, tensors = load_encoder(encoder_file, name)
    network = Network(encoder, frozen=frozen)
    network.load_encoder(tensors)
    return network


def load_network(model_file: Path, encoder_file: Path) -> tuple[Network, Model]:
    """Return the trained network, in evaluation mode, and what its file says of it."""
    way_out = "Run `dvc repro train`."
    tensors, header = load_tensors(model_file, way_out)
    model = checked_header(Model, header, model_file, way_out)
    if model.encoder_frozen and model.encoder_sha256 != file_sha256(encoder_file):
        raise Refusal(f"{model_file} was trained on another encoder than {encoder_file}. {way_out}")
    network = new_network(encoder_file, name=model.encoder_name, frozen=model.encoder_frozen)
    problem = mismatch(network.trained_tensors(), tensors)
    if problem:
        raise Refusal(f"{model_file}: {problem}. {way_out}")
    network.unet.load_state_dict(tensors, strict=False)
    return network.eval(), model
