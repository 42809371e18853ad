"""Files of encoders and trained models, and how to rebuild a network from them.

An encoder file contains all tensors of an smp encoder and the normalization of its input. A model
file contains the trained tensors (only decoder and head if the encoder is frozen, otherwise all)
and, in its header, the settings that rebuild the network. Both are safetensors files, which cannot
execute code when they are loaded.
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
from pipeline.refusals import Refusal, rebuild_hint
from scans.intensity import Normalize

Header = TypeVar("Header", "Encoder", "Model")
HEADER = "network"  # a single key, because the order of several in a safetensors header varies


@dataclass(frozen=True)
class Model:
    """The settings that rebuild a trained network, together with its tensors."""

    encoder_name: str
    encoder_sha256: str
    encoder_frozen: bool
    image_size: ImageSize
    context: Literal[0, 1]
    normalize: Normalize


def save_tensors(tensors: Tensors, header: Encoder | Model, path: Path) -> None:
    """Write tensors and header, reproducible to the byte; raise OSError if the disk is full."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, path, metadata={HEADER: json.dumps(asdict(header))})
    except SafetensorError as error:
        raise OSError(f"{path}: {error}") from None


def load_tensors(path: Path, hint: str) -> tuple[Tensors, dict[str, Any]]:
    """Return a safetensors file's tensors and its header's value for HEADER.

    Raises an error that ends with `hint` if the file is missing or damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
            if not isinstance(header, dict):
                raise Refusal(
                    f"{path}: unexpected header {header!r}; another program wrote this file. {hint}"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118
    except FileNotFoundError:
        raise Refusal(f"{path}: no such file. {hint}") from None
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise Refusal(f"{path}: not a valid safetensors file ({error}). {hint}") from None


def checked_header(kind: type[Header], header: dict[str, Any], path: Path, hint: str) -> Header:
    """Return a file's header as an object of class `kind`; raise an error if it does not fit."""
    try:
        checked: Header = TypeAdapter(kind).validate_python(header)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Refusal(
            f"{path}: not a valid {kind.__name__.lower()} file; header field {place}: "
            f"{first['msg'].lower()}. {hint}"
        ) from None
    return checked


def describe_mismatch(expected: Tensors, found: Tensors) -> str:
    """Return how tensors differ in name or shape from the expected ones; empty if they match."""
    reshaped = [
        name
        for name in sorted(expected.keys() & found.keys())
        if expected[name].shape != found[name].shape
    ]
    differences = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "reshaped": reshaped,
    }
    return "; ".join(
        f"{difference} tensors: {len(names)}, such as {names[0]}"
        for difference, names in differences.items()
        if names
    )


def load_encoder(
    path: Path, name: str, hint: str = rebuild_hint("fetch_encoder")
) -> tuple[Encoder, Tensors]:
    """Return the encoder file's header and tensors; raise an error if it is another encoder."""
    tensors, header = load_tensors(path, hint)
    problem = describe_mismatch(build_encoder(name).state_dict(), tensors)
    if problem:
        raise Refusal(f"{path} does not fit encoder.name {name!r}: {problem}. {hint}")
    bad = [key for key, tensor in tensors.items() if not torch.isfinite(tensor).all()]
    if bad:
        raise Refusal(f"{path}: tensors with NaN or infinity: {len(bad)}, such as {bad[0]}. {hint}")
    input_scale = {key: value for key, value in header.items() if key in ("mean", "std")}
    return checked_header(Encoder, input_scale | {"name": name}, path, hint), tensors


def new_network(encoder_file: Path, *, name: str, frozen: bool, context: int = 0) -> Network:
    """Return a network with the file's encoder and a decoder initialized by torch's seed."""
    encoder, tensors = load_encoder(encoder_file, name)
    network = Network(encoder, frozen=frozen, context=context)
    network.load_encoder(tensors)
    return network


def load_network(model_file: Path, encoder_file: Path) -> tuple[Network, Model]:
    """Return the trained network, in evaluation mode, and its file's header."""
    hint = rebuild_hint("train")
    tensors, header = load_tensors(model_file, hint)
    model = checked_header(Model, header, model_file, hint)
    if model.encoder_frozen and model.encoder_sha256 != file_sha256(encoder_file):
        raise Refusal(f"{model_file} was not trained with the encoder in {encoder_file}. {hint}")
    network = new_network(
        encoder_file,
        name=model.encoder_name,
        frozen=model.encoder_frozen,
        context=model.context,
    )
    problem = describe_mismatch(network.trained_tensors(), tensors)
    if problem:
        raise Refusal(f"{model_file}: {problem}. {hint}")
    network.load_trained(tensors)
    return network.eval(), model
