"""Export of the trained network to ONNX, which programs can run without PyTorch."""

import logging
from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from learning.network import Network

INPUT, OUTPUT = "slices", "probabilities"
N_TRACED = 2  # slices for tracing; tracing with one slice would fix their number
OPSET = 20


class VolumeNetwork(nn.Module):
    """Maps the slices of a volume, (N, S, S, 3) uint8 in order, to probabilities (N, S, S).

    Each slice is predicted with its neighbors; at the ends, the slice itself replaces the missing
    one. With `flips`, logits are averaged with those of the left-right mirror image.
    """

    def __init__(self, network: Network, *, flips: bool) -> None:
        super().__init__()
        self.network, self.flips = network, flips

    def logits(self, slices: torch.Tensor) -> torch.Tensor:
        """Return logits, (N, S, S)."""
        features = self.network.encode(slices)
        positions = torch.arange(slices.shape[0])
        before = (positions - 1).clamp(min=0)
        after = torch.minimum(positions + 1, positions[-1:])
        return self.network.decode(self.network.mix_context(features, before, slice(None), after))

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """Return the probability of tumor for each pixel."""
        logits = self.logits(slices)
        if self.flips:
            logits = (logits + self.logits(slices.flip(2)).flip(2)) / 2
        return torch.sigmoid(logits)


def store_as_half(graph: onnx.GraphProto) -> None:
    """Store a graph's weights as 16-bit floats that are cast to 32 bits before use.

    Vectors stay unchanged: they are small, and variances may be too large for 16 bits.
    """
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
            name, half = tensor.name, f"{tensor.name}_half"
            values = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(values, half))
            casts.append(onnx.helper.make_node("Cast", [half], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def remove_source_traces(graph: onnx.GraphProto) -> None:
    """Remove the exporter's notes on the source code of each node, which contain paths."""
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
        part.doc_string = ""
    del graph.value_info[:]


def onnx_bytes(
    network: Network, *, image_size: int, flips: bool, metadata: Mapping[str, str]
) -> bytes:
    """Return the bytes of an ONNX file of VolumeNetwork for square slices of `image_size` pixels.

    The input is `slices`, (N, S, S, 3) uint8; the output is `probabilities`, (N, S, S) float32. The
    same network and metadata give the same bytes.
    """
    volume = torch.zeros(N_TRACED, image_size, image_size, 3, dtype=torch.uint8)
    module = VolumeNetwork(network, flips=flips).cpu().eval().requires_grad_(False)
    # Hide warnings about constants that it does not fold.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            (volume,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={INPUT: {0: torch.export.Dim("n_slices")}},
        )
    assert program is not None
    model = program.model_proto
    remove_source_traces(model.graph)
    store_as_half(model.graph)
    onnx.checker.check_model(model, full_check=True)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    content: bytes = model.SerializeToString(deterministic=True)
    return content
