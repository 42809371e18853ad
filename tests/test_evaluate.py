"""Scores of a network whose every answer is known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import evaluate
from conftest import SIZE, Data, RunStage, Told, predicted
from manifest import read_manifest
from network import Encoder, Model, build_encoder, file_sha256, new_network, save_tensors
from prediction import overlap_counts
from slices import read_mask, slice_path

KEYS = {
    "iou",
    "iou_slice_abnormal",
    "dice_patient_mean",
    "dice_patient_median",
    "iou_patient_mean",
    "n_patients",
    "n_slices",
}


def counts_of(data: Data, answers: list[np.ndarray], slice_ids: list[str]) -> pd.DataFrame:
    predictions = predicted(Told(answers, 64), data, slice_ids)
    return overlap_counts(predictions, threshold=0.5)


def test_the_reference_itself_scores_1_and_nothing_scores_0(data: Data) -> None:
    splits = read_manifest(data.splits)
    slice_ids = splits["slice_id"].tolist()
    masks = [read_mask(slice_path(data.masks, slice_id)) for slice_id in slice_ids]
    for answers, expected in ((masks, 1.0), ([np.zeros_like(mask) for mask in masks], 0.0)):
        counts = counts_of(data, answers, slice_ids)
        assert counts["slice_id"].tolist() == slice_ids
        scores, patients = evaluate.score(splits.merge(counts, on="slice_id"))
        for split, values in scores.items():
            assert values.keys() >= KEYS
            for name in KEYS - {"n_patients", "n_slices"}:
                assert values[name] == expected
            rows = splits[splits["split"] == split]
            assert values["n_slices"] == len(rows)
            assert values["n_patients"] == rows["patient_id"].nunique()
        assert (patients["dice"] == expected).all()
        assert patients[["tp", "fp", "fn", "tn"]].sum().sum() == len(slice_ids) * SIZE**2


def test_a_slice_larger_than_the_network_is_scored_at_its_own_size(
    run_stage: RunStage, data: Data, tmp_path: Path
) -> None:
    encoder, unet = tmp_path / "encoder.safetensors", tmp_path / "unet.safetensors"
    torch.manual_seed(0)
    save_tensors(build_encoder("mobilenet_v2").state_dict(), Encoder("mobilenet_v2"), encoder)
    network = new_network(encoder, name="mobilenet_v2", frozen=True)
    header = Model("mobilenet_v2", file_sha256(encoder), True, 32)
    save_tensors(network.trained_tensors(), header, unet)
    outputs = [tmp_path / "evaluate.json", tmp_path / "evaluate/per_patient.csv"]
    paths = [data.images, data.masks, data.splits, encoder, unet, *outputs]
    names = ("evaluate", "compute.device", "compute.precision", "compute.workers")
    quick = {"compute__workers": 0, "evaluate__batch_size": 5}
    assert run_stage(evaluate.main, paths, *names, **quick).code == 0
    scores = json.loads(outputs[0].read_text())
    assert list(scores) == ["train", "val", "test"]
    patients = pd.read_csv(outputs[1])
    splits = read_manifest(data.splits)
    assert len(patients) == splits["patient_id"].nunique()
    counts = patients[["tp", "fp", "fn", "tn"]].sum(axis=1)
    assert (counts == patients["n_slices"] * SIZE**2).all()
    tumor = splits.groupby("patient_id")["tumor_area"].sum().loc[patients["patient_id"]]
    np.testing.assert_array_equal(patients["tp"] + patients["fn"], tumor)
    for split, values in scores.items():
        rows = patients[patients["split"] == split]
        tp, fp, fn = (rows[name].sum() for name in ("tp", "fp", "fn"))
        assert values["iou"] == pytest.approx(tp / (tp + fp + fn), abs=1e-5)
        assert values["dice_patient_mean"] == pytest.approx(rows["dice"].mean(), abs=1e-5)

    before = outputs[0].read_text()
    assert (
        run_stage(evaluate.main, paths, *names, **(quick | {"evaluate__batch_size": 32})).code == 0
    )
    assert outputs[0].read_text() == before
