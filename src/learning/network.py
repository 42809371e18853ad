"""The U-Net and its encoder, frozen or not."""

from collections.abc import Sequence
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
Places = slice | torch.Tensor  # of some slices among those that there are features of
TUMOR_PRIOR = 0.01  # probability of tumor that an untrained network gives
CONTEXT_CHANNELS = 64  # at most, through which neighboring slices are seen
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


class Context(nn.Module):
    """Adds to a slice's features at one level what those of its neighbors and its own tell.

    Two 1 × 1 convolutions from all three by way of at most CONTEXT_CHANNELS channels; the second
    one begins as zero, so that training starts from the slice alone. As linear layers of the
    channels they are faster on a CPU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        between = min(channels, CONTEXT_CHANNELS)
        self.down = nn.Linear(3 * channels, between, bias=False)
        self.up = nn.Linear(between, channels, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, before: torch.Tensor, own: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
        """Return features (N, C, H, W) of three of that shape."""
        around = torch.cat([before, own, after], dim=1).permute(0, 2, 3, 1)
        added: torch.Tensor = self.up(self.down(around))
        return own + added.permute(0, 3, 1, 2)


class Network(nn.Module):
    """A U-Net from uint8 scans (N, K, S, S, 3) to logits (N, S, S); S is a multiple of 32.

    K is 1 without context; with it 3: the slice before, the slice itself, the slice after. The
    encoder sees each of them, and what it makes of them is mixed at each level.

    A frozen encoder stays in evaluation mode and runs without a graph. `requires_grad = False`
    alone would let its batch-norm statistics drift, and smp's own freezing leaves the DropPath of
    transformers on.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, encoder: Encoder, *, frozen: bool, context: int = 0) -> None:
        super().__init__()
        self.unet = smp.Unet(encoder.name, encoder_weights=None, classes=1)
        for block in self.unet.decoder.blocks:
            block.__class__ = DecoderBlock
        # Begin where most pixels are no tumor (Lin et al., Focal Loss, ICCV 2017, section 4.1):
        # from one half, the first epoch would learn little else.
        prior = torch.tensor(TUMOR_PRIOR)
        nn.init.constant_(self.unet.segmentation_head[0].bias, float(torch.logit(prior)))
        # The decoder does not look at the first level, which is the scan itself.
        levels = self.unet.encoder.out_channels[1:] if context else []
        self.context = nn.ModuleList(Context(n) if n else nn.Identity() for n in levels)
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

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return what the encoder makes of scans (N, S, S, 3), at each level (N, C, H, W)."""
        normalized = (images.float() - self.mean) / self.std
        channels_last = normalized.permute(0, 3, 1, 2)  # (N, 3, S, S), strides as they are
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: list[torch.Tensor] = self.used_encoder(channels_last)
        return features

    def mixed(self, features: Sequence[torch.Tensor], *places: Places) -> list[torch.Tensor]:
        """Return features of slices, mixed where there is context.

        The three `places` in `features` are those of the slices before, of the slices themselves,
        and of the slices after.
        """
        before, own, after = places
        mixed = [level[own] for level in features]
        for n, mix in enumerate(self.context, start=1):
            if isinstance(mix, Context):
                mixed[n] = mix(features[n][before], mixed[n], features[n][after])
        return mixed

    def decode(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return logits (N, S, S) of features, mixed where there is context."""
        logits: torch.Tensor = self.unet.segmentation_head(self.unet.decoder(features))
        return logits[:, 0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, S, S) of scans (N, K, S, S, 3) uint8."""
        n, n_shown = images.shape[:2]
        # All first slices, then all middle ones: the features of each are a part without a copy.
        features = self.encode(images.transpose(0, 1).flatten(0, 1))
        parts = [slice(k * n, (k + 1) * n) for k in range(n_shown)]
        return self.decode(self.mixed(features, parts[0], parts[n_shown // 2], parts[-1]))

    def trained_tensors(self) -> Tensors:
        """Return copies of what training changes, buffers included, on the CPU."""
        return {
            name: tensor.detach().clone().contiguous().cpu()
            for name, tensor in self.trained_state().items()
        }

    def trained_state(self) -> Tensors:
        """Return what training changes, by name: no copies."""
        tensors = {**self.unet.state_dict(), **self.context.state_dict(prefix="context.")}
        return {
            name: tensor
            for name, tensor in tensors.items()
            if not (self.frozen and name.startswith("encoder."))
        }

    def load_trained(self, tensors: Tensors) -> None:
        """Set what training changes from tensors that `trained_tensors` has returned."""
        for name, tensor in self.trained_state().items():
            tensor.copy_(tensors[name])
