"""Inputs of the report, written without training a network."""

import inspect
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

import evaluate
import explore
import report
from helpers import Data, params, section, write_maps
from learning.network import Encoder, build_encoder
from learning.weights import Model, save_tensors
from pipeline.outputs import file_sha256
from pipeline.params import check_params
from scans.manifest import read_manifest
from scans.params import AcquireParams
from scoring.params import EvaluateParams

N_TESTED = 6  # of the phantom's ten patients; two of them have missing sequences


class Inputs(NamedTuple):
    """The input paths of the stage, in the order of its arguments."""

    splits: Path
    patients: Path
    predictions: Path
    encoder: Path
    unet: Path
    fetched: Path
    trained: Path
    curves: Path
    metrics: Path
    evaluated: Path
    exploration: Path
    explored: Path


CURVES = {"train/loss": [0.5, 0.4, 0.3], "train/iou": [0.1, 0.2, 0.3], "val/iou": [0.2, 0.5, 0.4]}


def write_curves(folder: Path) -> None:
    for name, values in CURVES.items():
        path = folder / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        curve = pd.Series(values, index=[1, 2, 3], name=path.stem)
        curve.to_csv(path, sep="\t", index_label="step")


def made_up_predictions(
    masks: dict[str, np.ndarray], patient_of: dict[str, str]
) -> dict[str, np.ndarray]:
    """Return probability maps that contain correct, missed and false pixels.

    A good prediction is the reference shifted by one pixel, a mediocre one is shifted by six, and
    an empty one is below the threshold everywhere.
    """
    rng, names = np.random.default_rng(0), sorted(set(patient_of.values()))
    mediocre, empty = (names[2], names[4]), (names[3],)
    maps = {}
    for slice_id, mask in masks.items():
        name = patient_of[slice_id]
        shifted = np.roll(mask, 6 if name in mediocre else 1, axis=1)
        high = 0.35 if name in empty else 0.85
        maps[slice_id] = np.where(shifted, high, 0.1) + rng.uniform(-0.09, 0.09, mask.shape)
    return maps


def make_inputs(root: Path, data: Data, masks: dict[str, np.ndarray]) -> Inputs:
    """Write the outputs of the earlier stages: tables, weights, and good and bad predictions."""
    found = Inputs(
        root / "splits.csv",
        data.patients,
        root / "predictions",
        root / "encoder.safetensors",
        root / "unet.safetensors",
        root / "fetch_encoder.json",
        root / "metrics.json",
        root / "curves",
        root / "evaluate.json",
        root / "evaluate",
        root / "explore.json",
        root / "explore",
    )
    manifest = read_manifest(data.splits)
    names = sorted(set(manifest["patient_id"]))
    sides = dict(zip(names, ["test"] * N_TESTED + ["val"] * 2 + ["train"] * 2, strict=True))
    manifest.assign(split=manifest["patient_id"].map(sides)).to_csv(found.splits, index=False)
    found.predictions.mkdir()
    patient_of = dict(zip(manifest["slice_id"], manifest["patient_id"], strict=True))
    write_maps(found.predictions, made_up_predictions(masks, patient_of))
    evaluate.main(
        data.geometry,
        found.splits,
        found.patients,
        found.predictions,
        found.metrics,
        found.evaluated,
        seed=1,
        evaluate=section(EvaluateParams, resamples=100, component_share=0),
    )
    explore.main(
        *(data.geometry, data.manifest, found.patients, found.exploration, found.explored),
        acquire=section(AcquireParams),
    )
    write_curves(found.curves)
    found.trained.write_text(json.dumps({"kept": {"epoch": 2, "val_iou": 0.5}}))
    encoder = build_encoder("mobilenet_v2").state_dict()
    save_tensors(encoder, Encoder("mobilenet_v2"), found.encoder)
    sha256 = file_sha256(found.encoder)
    model = Model("mobilenet_v2", sha256, True, 48, 0, "none")
    save_tensors({"tensor": torch.zeros(3)}, model, found.unet)
    fetched = {"name": "mobilenet_v2", "weights": "none", "sha256": sha256, "n_parameters": 2223872}
    found.fetched.write_text(json.dumps(fetched))
    return found


class Written(NamedTuple):
    """The output paths of the stage."""

    page: Path
    card: Path


PARAMS = {
    "acquire__dataset": "phantom",
    "evaluate__resamples": 100,
    "evaluate__component_share": 0,
}


def write_report(inputs: Inputs, folder: Path) -> Written:
    """Run the stage and return the report and card that it wrote into a folder."""
    found = Written(folder / "report/index.html", folder / "MODEL_CARD.md")
    kinds = {
        name: parameter.annotation
        for name, parameter in inspect.signature(report.main).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    report.main(*inputs, *found, **check_params(kinds, params(**PARAMS)))
    return found
