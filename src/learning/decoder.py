"""The decoder's blocks: smp's, computed with fewer multiplications."""

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from torch.nn import functional

FEW_PIXELS = 64  # of a feature map, up to which its kernel is not worth transforming


def transposed_kernel(kernel: torch.Tensor) -> torch.Tensor:
    """Return the kernel (I, O, 4, 4) that does in one go what enlarging and convolving do in two.

    For a kernel (O, I, 3, 3), a transposed convolution of stride 2 and padding 1 with the result
    equals a convolution of padding 1 over the image with each pixel doubled in both directions:
    each output pixel sees two of the three taps fall on the same pixel, so that their sum serves.
    """
    padded = functional.pad(kernel.flip(2, 3).transpose(0, 1), (1, 1, 1, 1))
    rows = padded[:, :, :-1] + padded[:, :, 1:]
    return rows[..., :-1] + rows[..., 1:]


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
            kernel = transposed_kernel(from_below)
            x = functional.conv_transpose2d(features, kernel, convolution.bias, stride=2, padding=1)
        if skip_connection is not None and from_beside.shape[1]:
            x = x + functional.conv2d(skip_connection, from_beside, padding=1)
        for layer in (*norm_and_relu, self.conv2):
            x = layer(x)
        return x
