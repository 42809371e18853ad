"""The U-Net and its encoder, frozen or not."""

from dataclasses import dataclass
from typing import Annotated

import segmentation_models_pytorch as smp
import torch
from pydantic import Field
from torch import nn
from torch.fx.experimental.optimization import fuse

from learning.decoder import DecoderBlock
from pipeline.refusals import Refusal

Tensors = dict[str, torch.Tensor]
TUMOR_PRIOR = 0.01  # probability of tumor that an untrained network gives
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Encoder:
    """An encoder's name among those of smp, and the mean and deviation of its input in [0, 1]."""

    name: str
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)


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
    transformers on.
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
        self.frozen = frozen
        self.unet.encoder.requires_grad_(not frozen)
        self.used_encoder = self.unet.encoder
        self.register_buffer("mean", 255 * torch.tensor(encoder.mean), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(encoder.std), persistent=False)

    def train(self, mode: bool = True) -> "Network":
        """Set training or evaluation mode; a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.unet.encoder.eval()
            self.used_encoder.eval()
        return self

    def load_encoder(self, tensors: Tensors) -> None:
        """Set the encoder's tensors; a frozen one computes with a copy that is faster."""
        self.unet.encoder.load_state_dict(tensors)
        if self.frozen:
            self.used_encoder = folded(self.unet.encoder)

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
