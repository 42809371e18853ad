"""The stage evaluate on probability maps with known scores."""

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
    """The outputs of the stage."""

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


def test_the_reference_itself_has_perfect_scores(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path
) -> None:
    for slice_id, mask in masks.items():
        write_levels(mask.astype(np.uint8) * 255, maps, slice_id)
    result = run_evaluate(run_stage, data, maps)
    splits = read_manifest(data.splits)
    assert list(result.scores) == list(SPLITS)
    for split_name, scores in result.scores.items():
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
    definitions = result.tables["definitions"].set_index(["split", "predictor"])
    assert ("all", "network") not in definitions.index  # it would include training slices
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
    assert (result.tables["per_patient"]["dice"] == 1).all()
    assert (result.tables["subgroups"]["dice_patient_mean"] == 1).all()


def test_empty_predictions_score_0(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path
) -> None:
    for slice_id, mask in masks.items():
        write_levels(np.zeros(mask.shape, np.uint8), maps, slice_id)
    result = run_evaluate(run_stage, data, maps)
    scores = result.scores["test"]
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
    assert scores["aurc"] == 1  # confidence is 1 for patients with a Dice of 0
    table = result.tables["definitions"].set_index(["split", "predictor"])
    columns = [name for name in table.columns if name != "name"]
    pd.testing.assert_series_equal(
        table.loc[("test", "network"), columns],
        table.loc[("test", "always empty"), columns],
        check_names=False,
    )


def test_tables_agree_with_the_main_scores(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path
) -> None:
    probabilities = noisy(masks)
    write_maps(maps, probabilities)
    result = run_evaluate(run_stage, data, maps)
    slices = result.tables["per_slice"].set_index("slice_id")
    assert set(slices.index) == set(masks)
    for slice_id, mask in masks.items():
        row = slices.loc[slice_id]
        predicted = PROBABILITIES[to_levels(probabilities[slice_id])] > 0.5
        assert row["tp"] == (predicted & mask).sum()
        assert row["fp"] == (predicted & ~mask).sum()
        assert row["detected"] == predicted.any()
        assert row["reference_area"] == mask.sum()
        assert row["predicted_area"] == predicted.sum()
        assert row[["tp", "fp", "fn", "tn"]].sum() == SIZE**2
        assert row["max_probability"] == pytest.approx(probabilities[slice_id].max(), abs=0.004)
    for split_name, scores in result.scores.items():
        rows = slices[slices["split"] == split_name]
        tp, fp, fn = (rows[name].sum() for name in ("tp", "fp", "fn"))
        assert 0.5 < scores["iou"] < 0.95
        assert scores["iou"] == pytest.approx(tp / (tp + fp + fn), abs=1e-5)
        assert scores["precision"] == pytest.approx(tp / (tp + fp), abs=1e-5)
        volumes = rows.groupby("patient_id")[["tp", "fp", "fn"]].sum()
        by_patient = dice(volumes["tp"], volumes["fp"], volumes["fn"])
        assert scores["dice_patient_mean"] == pytest.approx(by_patient.mean(), abs=1e-5)
        patients = result.tables["per_patient"].query("split == @split_name")
        np.testing.assert_allclose(patients["dice"], by_patient, atol=1e-5)
        assert scores["hd95_slice_mean"] == pytest.approx(rows["hd95"].mean(), abs=1e-5)
        assert scores["surface_dice_slice_mean"] == pytest.approx(
            rows["surface_dice"].mean(), abs=1e-5
        )
        definition = result.tables["definitions"].query(
            "split == @split_name and predictor == 'network'"
        )
        assert definition["micro_iou"].item() == scores["iou"]
        assert definition["patient_dice_median"].item() == scores["dice_patient_median"]
        assert result.tables["reliability"][f"{split_name}_n_pixels"].sum() == len(rows) * SIZE**2
        confidence = [
            expected_dice([probabilities[slice_id] for slice_id in chosen.index])
            for _, chosen in rows.groupby("patient_id")
        ]
        np.testing.assert_allclose(patients["confidence"], confidence, atol=1e-5)
        by_confidence = patients.sort_values("confidence", ascending=False)["dice"]
        risks = 1 - by_confidence.expanding().mean()
        assert scores["aurc"] == pytest.approx(risks.mean(), abs=1e-5)
        assert scores["ece"] < scores["ece_above_first_bin"]
        risk = result.tables["risk_coverage"].set_index("coverage")[split_name]
        half = -(-len(risks) // 2) - 1
        assert risk[0.5] == pytest.approx(risks.iloc[half], abs=2e-5)
        assert risk[1.0] == pytest.approx(1 - scores["dice_patient_mean"], abs=2e-5)
    groups = result.tables["subgroups"].query("split == 'train'")
    for attribute in ("institution", "grade", "gender", "age", "missing sequence"):
        rows = groups[groups["attribute"] == attribute]
        assert rows["n_patients"].sum() == result.scores["train"]["n_patients"]
        mean = np.average(rows["dice_patient_mean"], weights=rows["n_patients_dice"])
        assert mean == pytest.approx(result.scores["train"]["dice_patient_mean"], abs=1e-4)
    p1 = result.tables["per_patient"].query("split == 'train' and patient_id.str.contains('_P1_')")
    row = groups.set_index("group").loc["institution: P1 (train)"]
    assert row["n_patients"] == len(p1)
    assert row["dice_patient_median"] == pytest.approx(p1["dice"].median(), abs=1e-5)
    assert run_evaluate(run_stage, data, maps).files == result.files


def expected_dice(probabilities: list[np.ndarray]) -> float:
    """Return the Dice that a network expects for a patient, from the stored probabilities."""
    stored = PROBABILITIES[np.stack([to_levels(slice_) for slice_ in probabilities])]
    predicted = stored > 0.5
    return float(2 * stored[predicted].sum() / (stored.sum() + predicted.sum()))


def to_levels(probability: np.ndarray) -> np.ndarray:
    return encode(np.log(probability / (1 - probability)))


def test_the_threshold_can_be_chosen_on_val(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path
) -> None:
    """Tumor pixels have 0.33 on val and 0.18 elsewhere, so 0.5 is far too high.

    On val, several thresholds are equally good; 0.3 is the one nearest to 0.5.
    """
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


def test_the_best_threshold_is_that_of_an_exhaustive_search() -> None:
    rng = np.random.default_rng(0)
    counts = np.stack([rng.integers(0, 900, LEVELS)[::-1], rng.integers(0, 900, LEVELS)])
    counts[0].sort()
    counts[0] = counts[0][::-1]
    assert evaluate.best_threshold(np.zeros((2, LEVELS), np.int64)) == 0.5  # all are equally good
    scores = []
    for threshold in evaluate.THRESHOLDS:
        above = threshold < PROBABILITIES
        tp, fp = counts[1, above].sum(), counts[0, above].sum()
        scores.append(tp / (counts[1].sum() + fp))
    assert evaluate.best_threshold(counts) == evaluate.THRESHOLDS[int(np.argmax(scores))]
    assert np.argmax(scores) > 0


def test_small_components_can_be_removed(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path
) -> None:
    with_islands = {}
    for slice_id, mask in masks.items():
        probability = 0.98 * mask
        probability[2:4, 2:4] = 0.98  # a false positive in every slice
        with_islands[slice_id] = probability
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
    assert after["detection_auroc"] == before["detection_auroc"]  # it depends on probabilities only


def test_a_split_by_slice_includes_the_score_of_copied_neighboring_masks(
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


def test_maps_of_the_wrong_size_and_missing_maps_are_an_error(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path
) -> None:
    write_maps(maps, noisy(masks))
    first = next(iter(masks))
    out = maps.parent / "evaluate"
    paths = [data.geometry, data.splits, data.patients, maps, out.with_suffix(".json"), out]
    write_levels(np.zeros((3, 4), np.uint8), maps, first)
    outcome = run_stage(evaluate.main, paths)
    assert outcome.code == 1
    for fact in (f"{maps / first}.png: ", "(3, 4)", "(48, 48)", "`dvc repro predict`"):
        assert fact in outcome.error
    (maps / f"{first}.png").unlink()
    outcome = run_stage(evaluate.main, paths)
    assert outcome.code == 1
    for fact in (f"{maps / first}.png: ", "FileNotFoundError", "`dvc repro predict`"):
        assert fact in outcome.error
    assert not out.exists()


def test_the_largest_component_of_the_volume_is_kept_with_slices_of_different_sizes(
    maps: Path, tmp_path: Path
) -> None:
    """A pixel with exactly the threshold as its probability is not tumor."""
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
    all_components = segment_volume(volume, maps, threshold=at_level, share=0)
    largest = segment_volume(volume, maps, threshold=at_level, share=1)
    for with_island, without in zip(all_components, largest, strict=True):
        assert with_island.counts()["fp"] == 1
        assert with_island.predicted.sum() == 5
        assert without.counts() == {"tp": 4, "fp": 0, "fn": 0, "tn": without.mask.size - 4}
        np.testing.assert_array_equal(without.predicted, without.mask)


@pytest.mark.parametrize("values", [(0, 1), (0, 2), (0, 100), (1, 2), (0, 1, 255)])
def test_maps_with_few_distinct_values_are_an_error(
    run_stage: RunStage,
    data: Data,
    masks: dict[str, np.ndarray],
    maps: Path,
    tmp_path: Path,
    values: tuple[int, ...],
) -> None:
    """They are masks in another encoding. Perfect masks of 0 and 1, for example, would score 0."""
    for number, (slice_id, mask) in enumerate(masks.items()):
        tumor = values[1 + number % (len(values) - 1)]
        write_levels(np.where(mask, tumor, values[0]).astype(np.uint8), maps, slice_id)
    paths = [data.geometry, data.splits, data.patients, maps]
    paths += [tmp_path / "m.json", tmp_path / "metrics"]
    outcome = run_stage(evaluate.main, paths)
    assert outcome.code == 1
    for fact in (str(maps), str(list(values)), "0 and 255"):
        assert fact in outcome.error
    assert not (tmp_path / "m.json").exists()


def test_without_val_other_splits_are_scored_and_the_threshold_cannot_be_chosen_on_val(
    run_stage: RunStage, data: Data, masks: dict[str, np.ndarray], maps: Path, tmp_path: Path
) -> None:
    table = read_manifest(data.splits)
    splits = tmp_path / "splits.csv"
    table.assign(split=table["split"].replace("val", "train")).to_csv(splits, index=False)
    write_maps(maps, noisy(masks))
    result = run_evaluate(run_stage, data, maps, splits)
    assert list(result.scores) == ["train", "test"]
    assert result.scores["test"] == run_evaluate(run_stage, data, maps).scores["test"]
    for table in result.tables.values():
        assert "val" not in table
        assert "val" not in set(table.get("split", []))
    paths = [data.geometry, splits, data.patients, maps, tmp_path / "m.json", tmp_path / "metrics"]
    outcome = run_stage(evaluate.main, paths, evaluate__threshold="val")
    assert outcome.code == 1
    for fact in ("evaluate.threshold is val", str(splits), "split.val_fraction"):
        assert fact in outcome.error
