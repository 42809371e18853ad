"""The files of encoder and model, and the network that is rebuilt from them.

An encoder file holds every tensor of an smp encoder and how its input is normalized. A model file
holds what was trained: the decoder and head alone when the encoder is frozen, everything otherwise,
and in its header what rebuilds the network. Both are safetensors: loading them executes nothing.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from learning.network import Encoder, Network, Tensors, build_encoder
from learning.params import ImageSize
from pipeline.outputs import file_sha256
from pipeline.refusals import Refusal, remake
from scans.intensity import Normalize

Header = TypeVar("Header", "Encoder", "Model")
HEADER = "network"  # one key, for the order of several in a safetensors header varies


@dataclass(frozen=True)
class Model:
    """What rebuilds a trained network beside its tensors."""

    encoder_name: str
    encoder_sha256: str
    encoder_frozen: bool
    image_size: ImageSize
    context: Literal[0, 1]
    normalize: Normalize


def save_tensors(tensors: Tensors, header: Encoder | Model, path: Path) -> None:
    """Write tensors and header; the same ones give the same bytes. OSError if the disk is full."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata={HEADER: json.dumps(asdict(header))})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from None


def load_tensors(path: Path, hint: str) -> tuple[Tensors, dict[str, Any]]:
    """Return a safetensors file's tensors and what its header says under HEADER.

    Refuses a file that is missing or damaged, with a `hint` for the person who reads it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            if not isinstance(header, dict):
                raise Refusal(
                    f"{path}: its header is {header!r}, written by another program. {hint}"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError:
        raise Refusal(f"{path}: no such file. {hint}") from None
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise Refusal(f"{path}: not a sound safetensors file ({error}). {hint}") from None


def checked_header(kind: type[Header], header: dict[str, Any], path: Path, hint: str) -> Header:
    """Return what a file's header says, if it is of that kind."""
    try:
        checked: Header = TypeAdapter(kind).validate_python(header)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Refusal(
            f"{path}: its header is not that of this repository's {kind.__name__.lower()} "
            f"({place}: {first['msg'].lower()}). {hint}"
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
    path: Path, name: str, hint: str = remake("fetch_encoder")
) -> tuple[Encoder, Tensors]:
    """Return the encoder file's header and tensors; refuse a file of another encoder."""
    tensors, header = load_tensors(path, hint)
    problem = mismatch(build_encoder(name).state_dict(), tensors)
    if problem:
        raise Refusal(f"{path} does not fit encoder.name {name!r}: {problem}. {hint}")
    bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise Refusal(f"{path}: {len(bad)} tensors not finite, such as {bad[0]}. {hint}")
    own = {key: value for key, value in header.items() if key in ("mean", "std")}
    return checked_header(Encoder, own | {"name": name}, path, hint), tensors


def new_network(encoder_file: Path, *, name: str, frozen: bool, context: int = 0) -> Network:
    """Return a network with the file's encoder and a decoder drawn from torch's global seed."""
    encoder, tensors = load_encoder(encoder_file, name)
    network = Network(encoder, frozen=frozen, context=context)
    network.load_encoder(tensors)
    return network


def load_network(model_file: Path, encoder_file: Path) -> tuple[Network, Model]:
    """Return the trained network, in evaluation mode, and what its file says of it."""
    hint = remake("train")
    tensors, header = load_tensors(model_file, hint)
    model = checked_header(Model, header, model_file, hint)
    if model.encoder_frozen and model.encoder_sha256 != file_sha256(encoder_file):
        raise Refusal(f"{model_file} was trained on another encoder than {encoder_file}. {hint}")
    network = new_network(
        encoder_file,
        name=model.encoder_name,
        frozen=model.encoder_frozen,
        context=model.context,
    )
    problem = mismatch(network.trained_tensors(), tensors)
    if problem:
        raise Refusal(f"{model_file}: {problem}. {hint}")
    network.load_trained(tensors)
    return network.eval(), model
