"""The trained network as an ONNX file, which other programs run without PyTorch."""

import logging
from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from learning.network import Network

INPUT, OUTPUT = "slices", "probabilities"
TRACED = 2  # slices that the graph is recorded with; one would fix their number
OPSET = 20


class VolumeNetwork(nn.Module):
    """From the slices of a volume, (N, S, S, 3) uint8 in order, to probabilities (N, S, S).

    Each slice is seen with the one before and the one after; at the ends the slice itself stands
    in. With `flips`, logits are averaged with those of the left-right mirror image.
    """

    def __init__(self, network: Network, *, flips: bool) -> None:
        super().__init__()
        self.network, self.flips = network, flips

    def logits(self, slices: torch.Tensor) -> torch.Tensor:
        """Return logits, (N, S, S)."""
        features = self.network.encode(slices)
        places = torch.arange(slices.shape[0])
        before, after = (places - 1).clamp(min=0), torch.minimum(places + 1, places[-1:])
        return self.network.decode(self.network.mixed(features, before, slice(None), after))

    def forward(self, slices: torch.Tensor) -> torch.Tensor:
        """Return the probability of tumor in each pixel."""
        logits = self.logits(slices)
        if self.flips:
            logits = (logits + self.logits(slices.flip(2)).flip(2)) / 2
        return torch.sigmoid(logits)


def stored_in_half(graph: onnx.GraphProto) -> None:
    """Store a graph's weights as 16-bit floats, each cast to 32 bits before it is used.

    Vectors stay as they are: they are small, and variances may be too large for 16 bits.
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


def without_traces(graph: onnx.GraphProto) -> None:
    """Remove what the exporter tells of the code that a node comes from: it holds paths."""
    for each in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del each.metadata_props[:]
        each.doc_string = ""
    del graph.value_info[:]


def onnx_bytes(
    network: Network, *, image_size: int, flips: bool, metadata: Mapping[str, str]
) -> bytes:
    """Return an ONNX file of a network that takes slices of `image_size` pixels along each side.

    The input is `slices`, (N, S, S, 3) uint8, the output `probabilities`, (N, S, S) float32, as
    VolumeNetwork has them. The same network and metadata give the same bytes.
    """
    volume = torch.zeros(TRACED, image_size, image_size, 3, dtype=torch.uint8)
    module = VolumeNetwork(network, flips=flips).cpu().eval().requires_grad_(False)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)  # of constants that it leaves alone
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
    without_traces(model.graph)
    stored_in_half(model.graph)
    onnx.checker.check_model(model, full_check=True)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))
    content: bytes = model.SerializeToString(deterministic=True)
    return content
