"""Fetch the encoder's weights, so that DVC versions them like data.

    python src/fetch_encoder.py models/encoder.safetensors metrics/fetch_encoder.json

`encoder.weights` is `imagenet`, `none` (random) or the path of a safetensors file. With `imagenet`,
the environment variable ENCODER_WEIGHTS can name a local copy. If it is not set, the weights come
from DVC's cache or remote, or else from the Hugging Face hub through smp's own loader.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from learning.network import Encoder, build_encoder
from learning.params import EncoderParams
from learning.weights import load_encoder, save_tensors
from pipeline import dvc_copy
from pipeline.command import run
from pipeline.outputs import file_sha256, replacing, write_metrics
from pipeline.params import Seed
from pipeline.refusals import Refusal

LOCAL_COPY = "ENCODER_WEIGHTS"
DOWNLOAD_HINT = f"""Do one of the following:
  1. Connect to the Hugging Face hub and repeat (HF_ENDPOINT sets a mirror, HTTPS_PROXY a proxy).
  2. Set {LOCAL_COPY} to a copy of `model.safetensors` from the hub's smp-hub/<name>.imagenet,
     preferably with its `config.json` in the same folder.
  3. Set encoder.weights to `none` for random weights, preferably with encoder.frozen: false."""


def encoder_with_normalization(name: str, settings: dict[str, Any]) -> Encoder:
    """Return the encoder with the hub's mean and standard deviation for inputs in [0, 1]."""
    if settings.get("input_space", "RGB") != "RGB":
        raise Refusal(f"{name!r} needs {settings['input_space']} input; choose an RGB encoder")
    highest = settings.get("input_range", [0, 1])[1]
    mean, std = (tuple(value / highest for value in settings[key]) for key in ("mean", "std"))
    return Encoder(name, mean, std)


def download(name: str, target: Path) -> None:
    """Write the hub's ImageNet weights of an smp encoder and its input normalization."""
    build_encoder(name)
    try:
        weights = True if name.startswith("tu-") else "imagenet"
        encoder = smp.encoders.get_encoder(name, weights=weights)
        settings = smp.encoders.get_preprocessing_params(name)
    except KeyError as error:
        raise Refusal(f"encoder.name is {name!r}, which has no ImageNet weights: {error}") from None
    except Exception as error:  # the hub's client raises many kinds without a common base class
        reason = (str(error).splitlines() or [""])[0]
        raise Refusal(
            f"cannot download the weights of {name!r}: {type(error).__name__} {reason}\n"
            f"{DOWNLOAD_HINT}"
        ) from None
    save_tensors(encoder.state_dict(), encoder_with_normalization(name, settings), target)


def draw_random(name: str, seed: int, target: Path) -> None:
    """Write the encoder's random initial weights."""
    torch.manual_seed(seed)
    save_tensors(build_encoder(name).state_dict(), Encoder(name), target)


def copy_local(source: Path, name: str, target: Path) -> None:
    """Copy a safetensors file if it fits the encoder.

    If the hub's config.json is in the same folder, its input normalization is used. Otherwise the
    file is copied byte for byte, and ImageNet's usual constants apply.
    """
    hint = f"Set encoder.weights or {LOCAL_COPY} to a matching file, or change encoder.name."
    encoder, tensors = load_encoder(source, name, hint)
    config = source.with_name("config.json")
    if config.is_file():
        try:
            encoder = encoder_with_normalization(
                name, json.loads(config.read_text(encoding="utf-8"))
            )
        except Refusal:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise Refusal(f"{config}: not a valid hub config of {name!r} ({error!r})") from None
    if encoder == Encoder(name):
        shutil.copyfile(source, target)
    else:
        save_tensors(tensors, encoder, target)


def main(encoder_file: Path, metrics: Path, *, seed: Seed, encoder: EncoderParams) -> None:
    local_copy = os.environ.get(LOCAL_COPY)
    name, weights = encoder.name, encoder.weights
    used_params = {"encoder.name": name, "encoder.weights": weights}
    with replacing(encoder_file) as [partial]:
        if weights == "none":
            draw_random(name, seed, partial)
        elif weights != "imagenet":
            copy_local(Path(weights), name, partial)
        elif local_copy:
            copy_local(Path(local_copy), name, partial)
        elif not dvc_copy.restore(encoder_file, partial, stage="fetch_encoder", params=used_params):
            download(name, partial)
    n_parameters = sum(p.numel() for p in build_encoder(name).parameters())
    write_metrics(
        metrics,
        {
            "name": name,
            "weights": weights,
            "sha256": file_sha256(encoder_file),
            "n_parameters": n_parameters,
        },
    )


if __name__ == "__main__":
    run(main)
