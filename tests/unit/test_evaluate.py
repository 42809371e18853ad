"""The stage on probability maps whose every score is known."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import evaluate
import split
from helpers import SIZE, Data, RunStage, noisy, section, write_maps
from scans.manifest import SPLITS, read_manifest
from scans.params import SplitParams
from scans.probability_maps import PROBABILITIES, encode, write_levels
from scans.tiff import LEVELS
from scoring.definitions import COPIED
from scoring.overlap import dice
from scoring.segmentation import segment_volume

TABLES = ["definitions", "per_patient", "per_slice", "reliability", "risk_coverage", "subgroups"]


class Evaluated(NamedTuple):
    """What the stage wrote."""

    scores: dict[str, dict[str, Any]]
    tables: dict[str, Any]
    files: dict[str, bytes]


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    folder = tmp_path / "predictions"
    folder.mkdir()
    return folder


def run_evaluate(
    run_stage: RunStage, data: Data, maps: Path, splits: Path | None = None, **options: Any
) -> Evaluated:
    out = maps.parent / "evaluate"
    paths = [data.geometry, splits or data.splits, data.patients, maps]
    options = {"resamples": 100, "component_share": 0} | options
    overrides = {f"evaluate__{name}": value for name, value in options.items()}
    metrics = out.with_suffix(".json")
    outcome = run_stage(evaluate.main, [*paths, metrics, out], **overrides)
    assert outcome.code == 0, outcome.error
    files = {path.name: path.read_bytes() for path in [metrics, *sorted(out.iterdir())]}
    tables = {path.stem: pd.read_csv(path) for path in out.glob("*.csv")}
    assert sorted(tables) == TABLES
    return Evaluated(json.loads(metrics.read_text()), tables, files)


def test_the_reference_itself_scores_1_at_distance_0(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path
) -> None:
    for slice_id, mask in masks.items():
        write_levels(mask.astype(np.uint8) * 255, maps, slice_id)
    found = run_evaluate(run_stage, data, maps)
    splits = read_manifest(data.splits)
    assert list(found.scores) == list(SPLITS)
    for split_name, scores in found.scores.items():
        for name, value in scores.items():
            if scores["n_patients"] == 1 and name.endswith(("_low", "_high")):
                assert value is None, name
            elif name.startswith(("iou", "dice", "precision", "recall", "surface", "detection_a")):
                assert value == 1, name
            elif name.startswith(("hd95", "fp_area", "area", "ece", "aurc")):
                assert value == 0, name
        rows = splits[splits["split"] == split_name]
        assert scores["n_slices"] == scores["detection_tp"] + scores["detection_tn"] == len(rows)
        assert scores["n_slices_abnormal"] == scores["n_slices_hd95"] == rows["abnormal"].sum()
        assert scores["n_patients"] == scores["n_patients_dice"] == rows["patient_id"].nunique()
    definitions = found.tables["definitions"].set_index(["split", "predictor"])
    assert ("all", "network") not in definitions.index  # it would mix train with the rest
    perfect = definitions.loc[("all", "reference")]
    np.testing.assert_array_equal(
        definitions.loc[("test", "network")].drop("name"),
        definitions.loc[("test", "reference")].drop("name"),
    )
    ones = [name for name in perfect.index if "iou" in name or "dice" in name]
    abnormal = splits["abnormal"].mean()
    for name in ones:
        expected = abnormal if name == "slice_iou_empty_0" else 1
        assert perfect[name] == pytest.approx(expected, abs=1e-5), name
    assert (found.tables["per_patient"]["dice"] == 1).all()
    assert (found.tables["subgroups"]["dice_patient_mean"] == 1).all()


def test_a_network_that_says_nothing_scores_0(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path
) -> None:
    for slice_id, mask in masks.items():
        write_levels(np.zeros(mask.shape, np.uint8), maps, slice_id)
    found = run_evaluate(run_stage, data, maps)
    scores = found.scores["test"]
    for name in (
        "iou",
        "recall",
        "dice_patient_mean",
        "dice_patient_median",
        "surface_dice_slice_mean",
    ):
        assert scores[name] == 0, name
    assert scores["precision"] is None
    assert scores["hd95_slice_mean"] is None
    assert scores["n_slices_hd95"] == 0
    assert scores["detection_auroc"] == 0.5
    assert scores["aurc"] == 1  # sure that there is no tumor
    table = found.tables["definitions"].set_index(["split", "predictor"])
    shown = [name for name in table.columns if name != "name"]
    pd.testing.assert_series_equal(
        table.loc[("test", "network"), shown],
        table.loc[("test", "always empty"), shown],
        check_names=False,
    )


def test_tables_and_headline_tell_the_same(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path
) -> None:
    answers = noisy(masks)
    write_maps(maps, answers)
    found = run_evaluate(run_stage, data, maps)
    slices = found.tables["per_slice"].set_index("slice_id")
    assert set(slices.index) == set(masks)
    for slice_id, mask in masks.items():
        row, answer = slices.loc[slice_id], PROBABILITIES[encode_of(answers[slice_id])] > 0.5
        assert row["tp"] == (answer & mask).sum()
        assert row["fp"] == (answer & ~mask).sum()
        assert row["detected"] == answer.any()
        assert row["reference_area"] == mask.sum()
        assert row["predicted_area"] == answer.sum()
        assert row[["tp", "fp", "fn", "tn"]].sum() == SIZE**2
        assert row["max_probability"] == pytest.approx(answers[slice_id].max(), abs=0.004)
    for split_name, scores in found.scores.items():
        rows = slices[slices["split"] == split_name]
        tp, fp, fn = (rows[name].sum() for name in ("tp", "fp", "fn"))
        assert 0.5 < scores["iou"] < 0.95
        assert scores["iou"] == pytest.approx(tp / (tp + fp + fn), abs=1e-5)
        assert scores["precision"] == pytest.approx(tp / (tp + fp), abs=1e-5)
        volumes = rows.groupby("patient_id")[["tp", "fp", "fn"]].sum()
        by_patient = dice(volumes["tp"], volumes["fp"], volumes["fn"])
        assert scores["dice_patient_mean"] == pytest.approx(by_patient.mean(), abs=1e-5)
        patients = found.tables["per_patient"].query("split == @split_name")
        np.testing.assert_allclose(patients["dice"], by_patient, atol=1e-5)
        assert scores["hd95_slice_mean"] == pytest.approx(rows["hd95"].mean(), abs=1e-5)
        assert scores["surface_dice_slice_mean"] == pytest.approx(
            rows["surface_dice"].mean(), abs=1e-5
        )
        definition = found.tables["definitions"].query(
            "split == @split_name and predictor == 'network'"
        )
        assert definition["micro_iou"].item() == scores["iou"]
        assert definition["patient_dice_median"].item() == scores["dice_patient_median"]
        assert found.tables["reliability"][f"{split_name}_n_pixels"].sum() == len(rows) * SIZE**2
        sure = {
            name: expected_dice([answers[slice_id] for slice_id in chosen.index])
            for name, chosen in rows.groupby("patient_id")
        }
        np.testing.assert_allclose(patients["confidence"], list(sure.values()), atol=1e-5)
        by_confidence = patients.sort_values("confidence", ascending=False)["dice"]
        risks = 1 - by_confidence.expanding().mean()
        assert scores["aurc"] == pytest.approx(risks.mean(), abs=1e-5)
        assert scores["ece"] < scores["ece_above_first_bin"]
        risk = found.tables["risk_coverage"].set_index("coverage")[split_name]
        half = -(-len(risks) // 2) - 1
        assert risk[0.5] == pytest.approx(risks.iloc[half], abs=2e-5)
        assert risk[1.0] == pytest.approx(1 - scores["dice_patient_mean"], abs=2e-5)
    groups = found.tables["subgroups"].query("split == 'train'")
    for attribute in ("institution", "grade", "gender", "age", "missing sequence"):
        rows = groups[groups["attribute"] == attribute]
        assert rows["n_patients"].sum() == found.scores["train"]["n_patients"]
        mean = np.average(rows["dice_patient_mean"], weights=rows["n_patients_dice"])
        assert mean == pytest.approx(found.scores["train"]["dice_patient_mean"], abs=1e-4)
    p1 = found.tables["per_patient"].query("split == 'train' and patient_id.str.contains('_P1_')")
    row = groups.set_index("group").loc["institution: P1 (train)"]
    assert row["n_patients"] == len(p1)
    assert row["dice_patient_median"] == pytest.approx(p1["dice"].median(), abs=1e-5)
    assert run_evaluate(run_stage, data, maps).files == found.files


def expected_dice(answers: list[np.ndarray]) -> float:
    """Return the Dice that a network expects of a patient's slices, from what is stored."""
    stored = PROBABILITIES[np.stack([encode_of(answer) for answer in answers])]
    predicted = stored > 0.5
    return float(2 * stored[predicted].sum() / (stored.sum() + predicted.sum()))


def encode_of(probability: np.ndarray) -> np.ndarray:
    return encode(np.log(probability / (1 - probability)))


def test_the_threshold_can_be_chosen_on_val(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path
) -> None:
    """A network too shy by far: 0.3 parts best on val, as near to 0.5 as can be; 0.15 elsewhere."""
    splits = read_manifest(data.splits).set_index("slice_id")["split"]
    write_maps(
        maps,
        {
            slice_id: 0.27 * mask + 0.06 if splits[slice_id] == "val" else 0.1 * mask + 0.08
            for slice_id, mask in masks.items()
        },
    )
    at_half = run_evaluate(run_stage, data, maps)
    assert at_half.scores["test"]["iou"] == 0
    assert at_half.scores["test"]["threshold"] == 0.5
    chosen = run_evaluate(run_stage, data, maps, threshold="val")
    assert chosen.scores["test"]["threshold"] == 0.3
    assert chosen.scores["val"]["iou"] == 1
    assert chosen.scores["test"]["iou"] == 0
    assert run_evaluate(run_stage, data, maps, threshold=0.15).scores["test"]["iou"] == 1


def test_the_best_threshold_is_that_of_a_search_by_hand() -> None:
    rng = np.random.default_rng(0)
    counts = np.stack([rng.integers(0, 900, LEVELS)[::-1], rng.integers(0, 900, LEVELS)])
    counts[0].sort()
    counts[0] = counts[0][::-1]
    assert evaluate.best_threshold(np.zeros((2, LEVELS), np.int64)) == 0.5  # none is any better
    scores = []
    for threshold in evaluate.THRESHOLDS:
        above = threshold < PROBABILITIES
        tp, fp = counts[1, above].sum(), counts[0, above].sum()
        scores.append(tp / (counts[1].sum() + fp))
    assert evaluate.best_threshold(counts) == evaluate.THRESHOLDS[int(np.argmax(scores))]
    assert np.argmax(scores) > 0


def test_small_components_can_be_left_out(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path
) -> None:
    with_islands = {}
    for slice_id, mask in masks.items():
        answer = 0.98 * mask
        answer[2:4, 2:4] = 0.98  # a false alarm in every slice
        with_islands[slice_id] = answer
    write_maps(maps, with_islands)
    before = run_evaluate(run_stage, data, maps).scores["test"]
    assert before["detection_fp"] == before["n_slices"] - before["n_slices_abnormal"]
    assert before["fp_area_slice_healthy"] == 4
    after = run_evaluate(run_stage, data, maps, component_share=1).scores["test"]
    assert before["hd95_slice_mean"] > 10
    assert after["hd95_slice_mean"] < 2
    assert after["surface_dice_slice_mean"] > before["surface_dice_slice_mean"]
    assert after["detection_fp"] == 0
    assert after["precision"] == 1
    assert after["iou"] > before["iou"]
    assert after["detection_auroc"] == before["detection_auroc"]  # of probabilities


def test_a_slice_split_shows_what_copying_the_neighbor_scores(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path, tmp_path: Path
) -> None:
    splits = tmp_path / "by_slice.csv"
    paths = [data.manifest, data.patients, data.findings, splits]
    split.main(*paths, seed=1, split=section(SplitParams, by="slice", val_fraction=0.15))
    write_maps(maps, noisy(masks))
    table = run_evaluate(run_stage, data, maps, splits).tables["definitions"]
    rows = table[table["predictor"] == COPIED].set_index("split")
    manifest = read_manifest(splits)
    n_slices = manifest["split"].value_counts()
    assert rows["n_slices"].to_dict() == {
        "val": n_slices["val"],
        "test": n_slices["test"],
        "all": n_slices["val"] + n_slices["test"],
    }
    assert 0.4 < rows.loc["test", "micro_iou"] < 0.95
    by_patient = run_evaluate(run_stage, data, maps).tables["definitions"]
    assert COPIED not in set(by_patient["predictor"])


def test_maps_that_do_not_fit_are_refused(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path
) -> None:
    write_maps(maps, noisy(masks))
    first = next(iter(masks))
    out = maps.parent / "evaluate"
    paths = [data.geometry, data.splits, data.patients, maps, out.with_suffix(".json"), out]
    write_levels(np.zeros((3, 4), np.uint8), maps, first)
    outcome = run_stage(evaluate.main, paths)
    assert outcome.code == 1
    assert f"{maps / first}.png: (3, 4) pixels for a mask of (48, 48)" in outcome.error
    (maps / f"{first}.png").unlink()
    outcome = run_stage(evaluate.main, paths)
    assert outcome.code == 1
    assert f"{maps / first}.png: " in outcome.error
    assert "(FileNotFoundError)" in outcome.error
    assert "`dvc repro predict`" in outcome.error
    assert not out.exists()


def test_the_largest_component_is_that_of_the_volume_whatever_its_slices_sizes(
    maps: Path, tmp_path: Path
) -> None:
    """Three slices of three sizes; a probability of exactly the threshold is no tumor."""
    rows = []
    for number, size in enumerate((6, 9, 4)):
        mask = np.zeros((size, size + 1), np.uint8)
        mask[1:3, 1:3] = 255
        levels = mask.copy()
        levels[0, size] = 255  # an island in each slice
        levels[3, 3] = 100
        write_levels(levels, maps, str(number))
        Image.fromarray(mask).save(tmp_path / f"{number}.tif")
        mask_file = str(tmp_path / f"{number}.tif")
        rows.append({"slice_id": str(number), "slice_number": number, "mask": mask_file})
    volume = pd.DataFrame(rows)
    at_level = float(PROBABILITIES[100])
    islands = segment_volume(volume, maps, threshold=at_level, share=0)
    lesion = segment_volume(volume, maps, threshold=at_level, share=1)
    for one, other in zip(islands, lesion, strict=True):
        assert one.counts()["fp"] == 1
        assert one.predicted.sum() == 5
        assert other.counts() == {"tp": 4, "fp": 0, "fn": 0, "tn": other.mask.size - 4}
        np.testing.assert_array_equal(other.predicted, other.mask)


@pytest.mark.parametrize("values", [(0, 1), (0, 2), (0, 100), (1, 2), (0, 1, 255)])
def test_answers_in_another_convention_are_refused(
    run_stage: RunStage,
    data: Data,
    masks: dict[str, np.ndarray],
    maps: Path,
    tmp_path: Path,
    values: tuple[int, ...],
) -> None:
    """Perfect masks of 0 and 1 would score 0."""
    for number, (slice_id, mask) in enumerate(masks.items()):
        tumor = values[1 + number % (len(values) - 1)]
        write_levels(np.where(mask, tumor, values[0]).astype(np.uint8), maps, slice_id)
    paths = [data.geometry, data.splits, data.patients, maps]
    paths += [tmp_path / "m.json", tmp_path / "metrics"]
    outcome = run_stage(evaluate.main, paths)
    assert outcome.code == 1
    assert f"{maps}: " in outcome.error
    assert f"{list(values)}" in outcome.error
    assert not (tmp_path / "m.json").exists()


def test_a_split_without_val_is_scored_and_has_no_threshold_of_its_own(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path, tmp_path: Path
) -> None:
    table = read_manifest(data.splits)
    splits = tmp_path / "splits.csv"
    table.assign(split=table["split"].replace("val", "train")).to_csv(splits, index=False)
    write_maps(maps, noisy(masks))
    found = run_evaluate(run_stage, data, maps, splits)
    assert list(found.scores) == ["train", "test"]
    assert found.scores["test"] == run_evaluate(run_stage, data, maps).scores["test"]
    for each in found.tables.values():
        assert "val" not in each
        assert "val" not in set(each.get("split", []))
    paths = [data.geometry, splits, data.patients, maps, tmp_path / "m.json", tmp_path / "metrics"]
    outcome = run_stage(evaluate.main, paths, evaluate__threshold="val")
    assert outcome.code == 1
    assert f"evaluate.threshold is val, and {splits} has no slices of val" in outcome.error
