"""The U-Net, with an encoder that is frozen or trained."""

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
Positions = slice | torch.Tensor  # select slices from features
TUMOR_PRIOR = 0.01  # tumor probability that an untrained network predicts
CONTEXT_CHANNELS = 64  # maximum in the bottleneck that mixes neighboring slices
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Encoder:
    """An smp encoder's name, and the mean and standard deviation of its input in [0, 1]."""

    name: str
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Positive, Positive, Positive] = (0.229, 0.224, 0.225)


def build_encoder(name: str) -> nn.Module:
    """Return an smp encoder with random weights; raise an error if smp does not know the name."""
    try:
        encoder: nn.Module = smp.encoders.get_encoder(name, weights=None)
    except Exception:  # timm raises many kinds for models without feature maps
        known = smp.encoders.get_encoder_names()
        close = [other for other in known if other[:4] == name[:4]] or known[:8]
        raise Refusal(
            f"encoder.name is {name!r}, which segmentation-models-pytorch does not provide. It has "
            f"{len(known)} encoders, such as {', '.join(close)}; timm encoders are named tu-<name>."
        ) from None
    return encoder


def fold_batch_norms(encoder: nn.Module) -> nn.Module:
    """Return a copy of an encoder with each batch norm folded into the convolution before it.

    In evaluation mode, the two are one linear map. An encoder that torch.fx cannot trace is
    returned unchanged.
    """
    try:
        copy: nn.Module = fuse(encoder.eval())
    except Exception:  # tracing can fail anywhere in the encoder's code
        return encoder
    return copy


class Context(nn.Module):
    """Updates a slice's features at one level from its own and its neighbors' features.

    Two 1 × 1 convolutions map the features of all three slices to at most CONTEXT_CHANNELS channels
    and back; the result is added. The second convolution starts at zero, so training starts without
    context. As linear layers over the channels, they are faster on a CPU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        between = min(channels, CONTEXT_CHANNELS)
        self.down = nn.Linear(3 * channels, between, bias=False)
        self.up = nn.Linear(between, channels, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(
        self, before: torch.Tensor, middle: torch.Tensor, after: torch.Tensor
    ) -> torch.Tensor:
        """Return the middle slices' updated features; all are (N, C, H, W)."""
        stacked = torch.cat([before, middle, after], dim=1).permute(0, 2, 3, 1)
        added: torch.Tensor = self.up(self.down(stacked))
        return middle + added.permute(0, 3, 1, 2)


class Network(nn.Module):
    """A U-Net from uint8 scans (N, K, S, S, 3) to logits (N, S, S); S is a multiple of 32.

    K is 1 without context, and 3 with context: the slice before, the slice itself, the slice after.
    The encoder processes each of them, and their features are mixed at each level.

    A frozen encoder stays in evaluation mode and runs without an autograd graph. With only
    `requires_grad = False`, its batch-norm statistics would drift; smp's own freezing leaves the
    DropPath of transformers active.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, encoder: Encoder, *, frozen: bool, context: int = 0) -> None:
        super().__init__()
        self.unet = smp.Unet(encoder.name, encoder_weights=None, classes=1)
        for block in self.unet.decoder.blocks:
            block.__class__ = DecoderBlock
        # Start with a low tumor probability (Lin et al., Focal Loss, ICCV 2017, section 4.1);
        # starting from one half, the first epoch would learn little else.
        prior = torch.tensor(TUMOR_PRIOR)
        nn.init.constant_(self.unet.segmentation_head[0].bias, float(torch.logit(prior)))
        # The decoder ignores the first level, which is the scan itself.
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
        """Set the encoder's tensors; a frozen encoder also gets a faster copy for computations."""
        self.unet.encoder.load_state_dict(tensors)
        if self.frozen:
            self.used_encoder = fold_batch_norms(self.unet.encoder)

    def encode(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the encoder's features of scans (N, S, S, 3): at each level (N, C, H, W)."""
        normalized = (images.float() - self.mean) / self.std
        channels_last = normalized.permute(0, 3, 1, 2)  # (N, 3, S, S), strides unchanged
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features: list[torch.Tensor] = self.used_encoder(channels_last)
        return features

    def mix_context(
        self,
        features: Sequence[torch.Tensor],
        before: Positions,
        middle: Positions,
        after: Positions,
    ) -> list[torch.Tensor]:
        """Return the middle slices' features, mixed with their neighbors' if there is context.

        `before`, `middle` and `after` are positions in `features`.
        """
        mixed = [level[middle] for level in features]
        for n, mix in enumerate(self.context, start=1):
            if isinstance(mix, Context):
                mixed[n] = mix(features[n][before], mixed[n], features[n][after])
        return mixed

    def decode(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return logits (N, S, S) from the features that mix_context returns."""
        logits: torch.Tensor = self.unet.segmentation_head(self.unet.decoder(features))
        return logits[:, 0]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (N, S, S) of scans (N, K, S, S, 3) uint8."""
        n, n_views = images.shape[:2]
        # All slices before, then all middle slices: each part can be selected without a copy.
        features = self.encode(images.transpose(0, 1).flatten(0, 1))
        parts = [slice(k * n, (k + 1) * n) for k in range(n_views)]
        return self.decode(self.mix_context(features, parts[0], parts[n_views // 2], parts[-1]))

    def trained_tensors(self) -> Tensors:
        """Return CPU copies of the tensors that training changes, buffers included."""
        return {
            name: tensor.detach().clone().contiguous().cpu()
            for name, tensor in self.trained_state().items()
        }

    def trained_state(self) -> Tensors:
        """Return the tensors that training changes, by name, without copies."""
        tensors = {**self.unet.state_dict(), **self.context.state_dict(prefix="context.")}
        return {
            name: tensor
            for name, tensor in tensors.items()
            if not (self.frozen and name.startswith("encoder."))
        }

    def load_trained(self, tensors: Tensors) -> None:
        """Restore tensors that `trained_tensors` has returned."""
        for name, tensor in self.trained_state().items():
            tensor.copy_(tensors[name])
