"""The study's results are computed from its tables, and each patient counts once."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import join_folds
from comparison.study_tables import COST, Study, add_training
from helpers import Outcome, RunStage
from scoring.bootstrap import Bootstrap
from scoring.definitions import COPIED, EMPTY, NETWORK, REFERENCE

TP = 60  # pixels of each patient


def write_run(study: Path, name: str, dice: dict[str, float], **changes: Any) -> None:
    """Add a training and its tested patients, with their Dice, to the study's tables.

    `changes` sets values of its cost, or of its params with `__` for the dot.
    """
    table = pd.DataFrame({"patient_id": [f"TCGA_{patient}_20000101" for patient in dice]})
    table = table.assign(dice=list(dice.values()))
    errors = (2 * TP / table["dice"] - 2 * TP).round().fillna(0).astype(int)  # fp + fn
    table = table.assign(
        n_slices=9,
        n_abnormal=4,
        tp=TP,
        fp=errors // 2,
        fp_healthy=errors // 4,
        fn=errors - errors // 2,
        tn=1000,
        iou=table["dice"] / (2 - table["dice"]),
        **dict.fromkeys(("precision", "recall", "hd95", "surface_dice", "confidence"), 0.5),
    )
    kind, _, part = name.split("/")
    fold, repeat = (part, "0") if kind in ("folds", "institutions") else ("0", part)
    row = {"split.test_fold": fold, "train.epochs": "50", "train.repeat": repeat}
    row |= {"n_patients_test": str(len(dice))}
    row = dict.fromkeys(COST, "") | row | {k.replace("__", "."): v for k, v in changes.items()}
    training = pd.DataFrame([{"training": name} | row])
    scores = pd.DataFrame(columns=["training", "split", "predictor", "micro_iou"])
    table.insert(0, "training", name)
    add_training(files(study), [training, table, scores])


def files(study: Path) -> list[Path]:
    return [study / f"{name}.csv" for name in Study._fields]


def rewrite(study: Path, table: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change one of the study's tables; all its fields are text."""
    path = study / f"{table}.csv"
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def drop_trainings(study: Path, prefix: str) -> None:
    """Remove all trainings whose name begins with the prefix."""
    for path in files(study):
        rewrite(study, path.stem, lambda t: t[~t["training"].str.startswith(prefix)])


def random_dice(institution: str, n_patients: int, mean: float, seed: int) -> dict[str, float]:
    dice = np.random.default_rng(seed).normal(mean, 0.05, n_patients).clip(0.1, 0.95)
    return {f"{institution}_{number:04d}": value for number, value in enumerate(dice)}


def write_reviews(folder: Path, *lines: str) -> None:
    (folder / "worst.csv").write_text("\n".join(["patient_id,dice,kind,seen", *lines]) + "\n")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two folds of 12 patients with two recipes, and two candidates, one with two repeats."""
    folder = tmp_path / "study"
    folds = [random_dice("AB", 12, 0.8, 1), random_dice("CD", 12, 0.7, 2)]
    folder.mkdir()
    for number, dice in enumerate(folds):
        cost = {"minutes": 10.0, "images_per_s": 100.0 + number, "device": "1 × cpu in bf16-mixed"}
        write_run(folder, f"folds/frozen/{number}", dice, **cost)
        better = {name: value + 0.02 for name, value in dice.items()}
        cost = cost if number else {}  # an interrupted training has no cost
        write_run(folder, f"folds/context/{number}", better, **cost)
    review = f"TCGA_CD_0003_20000101,{better['CD_0003']:.5f},small_lesion,a tumor of 60 pixels"
    write_reviews(folder, review)
    write_run(folder, "choices/base/0", folds[0])
    write_run(folder, "choices/base/1", {name: v + 0.01 for name, v in folds[0].items()})
    write_run(folder, "choices/other/0", {name: v + 0.025 for name, v in folds[0].items()})
    return folder


def run_join_folds(run_stage: RunStage, study: Path) -> Outcome:
    out = study.parent
    paths = [*files(study), study / "worst.csv", out / "study.json", out / "joined"]
    return run_stage(join_folds.main, paths)


def test_scores_are_computed_over_the_patients_of_all_folds(
    run_stage: RunStage, study: Path
) -> None:
    assert run_join_folds(run_stage, study) == Outcome(0, "")
    folder = study.parent / "joined"
    table = pd.read_csv(folder / "out_of_fold.csv")
    assert table["patient_id"].is_unique
    assert table["institution"].value_counts().to_dict() == {"AB": 12, "CD": 12}
    assert (table["fold"] == (table["institution"] == "CD")).all()
    np.testing.assert_allclose(table["dice_frozen"], table["dice"] - 0.02)
    np.testing.assert_allclose(table["difference"], 0.02)
    written = json.loads((study.parent / "study.json").read_text())
    baseline, current = (written["folds"][name] for name in ("frozen", "context"))
    assert current["n_patients"] == 24
    assert current["n_folds"] == 2
    assert (baseline["minutes"], baseline["images_per_s"]) == (10, 100.5)
    assert (current["minutes"], current["images_per_s"]) == (10, 101)
    assert current["device"] == "1 × cpu in bf16-mixed"
    fold_0 = table[table["fold"] == 0]
    assert written["untouched"]["context"]["n_patients"] == len(fold_0) == 12
    mean_of_fold_0 = written["untouched"]["context"]["dice_patient_mean"]
    assert mean_of_fold_0 == pytest.approx(fold_0["dice"].mean(), abs=1e-5)
    assert current["difference"] == pytest.approx(0.02, abs=1e-5)
    assert current["difference_low"] == pytest.approx(0.02, abs=1e-5)
    assert (current["n_patients_difference"], "difference" in baseline) == (24, False)
    assert current["dice_patient_mean"] == pytest.approx(table["dice"].mean(), abs=1e-5)
    assert current["dice_patient_median"] == pytest.approx(table["dice"].median(), abs=1e-5)
    expected = table["tp"].sum() / table[["tp", "fp", "fn"]].sum().sum()
    assert current["iou"] == pytest.approx(expected, abs=1e-5)
    expected = table["fp_healthy"].sum() / table["fp"].sum()
    assert current["false_positives_on_healthy_slices"] == pytest.approx(expected, abs=1e-5)
    estimate = Bootstrap(1000, 1).mean(table["dice"])
    assert current["dice_patient_mean_low"] == pytest.approx(estimate.low, abs=1e-5)
    assert current["dice_patient_mean_high"] == pytest.approx(estimate.high, abs=1e-5)
    assert (folder / "figures/dice_by_patient.png").stat().st_size > 10_000


def test_other_recipes_are_compared_with_the_current_one(run_stage: RunStage, study: Path) -> None:
    """The current recipe is better than random_dice by 0.02, the other by 0.05."""
    for number, (institution, mean) in enumerate({"AB": 0.8, "CD": 0.7}.items()):
        dice = random_dice(institution, 12, mean, number + 1)
        write_run(study, f"folds/other/{number}", {name: v + 0.05 for name, v in dice.items()})
    assert run_join_folds(run_stage, study).code == 0
    other = json.loads((study.parent / "study.json").read_text())["folds"]["other"]
    assert other["difference"] == pytest.approx(0.03, abs=1e-4)
    assert other["n_patients_difference"] == 24


def test_candidates_are_compared_patient_by_patient(run_stage: RunStage, study: Path) -> None:
    """A difference that is equal in all patients has an interval of width 0.

    Patients' Dice has a standard deviation of 0.05. Repeat 1 of `later` is worse than repeat 1 of
    `base`, but better than the mean of both repeats of `base`.
    """
    later = {name: value + 0.008 for name, value in random_dice("AB", 12, 0.8, 1).items()}
    write_run(study, "choices/later/1", later)
    assert run_join_folds(run_stage, study).code == 0
    rows = pd.read_csv(study.parent / "joined/choices.csv").to_dict("records")
    names = ["choices/other", "choices/base", "choices/later"]
    assert [row["training"] for row in rows] == names
    other, base, _ = rows
    assert base["n_repeats"] == 2
    assert base["dice_repeats_high"] - base["dice_repeats_low"] == pytest.approx(0.01, abs=2e-5)
    assert base["dice_patient_mean"] == pytest.approx(base["dice_repeats_low"] + 0.005, abs=2e-5)
    assert np.isnan(base["difference"])
    assert other["n_repeats_difference"] == 1
    for name in ("", "_low", "_high", "_repeats_low", "_repeats_high"):
        assert other[f"difference{name}"] == pytest.approx(0.025, abs=1e-4)  # only repeat 0
    assert other["dice_patient_mean_high"] - other["dice_patient_mean_low"] > 0.02


def test_a_difference_uses_only_the_repeats_of_both_recipes(
    run_stage: RunStage, study: Path
) -> None:
    """Repeats 0 and 1 are better by 0.025 and 0.005; `base` has no repeat 2."""
    dice = random_dice("AB", 12, 0.8, 1)
    for repeat, gain in ((1, 0.015), (2, 0.1)):
        write_run(study, f"choices/other/{repeat}", {name: v + gain for name, v in dice.items()})
    assert run_join_folds(run_stage, study).code == 0
    other = (
        pd.read_csv(study.parent / "joined/choices.csv").set_index("training").loc["choices/other"]
    )
    assert (other["n_repeats"], other["n_repeats_difference"]) == (3, 2)
    assert other["difference"] == pytest.approx(0.015, abs=1e-4)
    assert other["difference_repeats_low"] == pytest.approx(0.005, abs=1e-4)
    assert other["difference_repeats_high"] == pytest.approx(0.025, abs=1e-4)


def inner(fold: int) -> dict[str, Any]:
    return {"split__inner_fold": str(fold), "train__repeat": "0"}


def test_inner_folds_are_joined_and_compared(run_stage: RunStage, study: Path) -> None:
    for number, (institution, gain) in enumerate({"AB": 0.01, "CD": 0.05}.items()):
        dice = random_dice(institution, 12, 0.8, number)
        write_run(study, f"inner/base/{number}", dice, **inner(number))
        better = {name: value + gain for name, value in dice.items()}
        write_run(study, f"inner/other/{number}", better, **inner(number))
    assert run_join_folds(run_stage, study).code == 0
    table = pd.read_csv(study.parent / "joined/choices.csv").set_index("training")
    other = table.loc["inner/other"]
    assert (other["n_patients"], other["n_repeats"], other["n_repeats_difference"]) == (24, 1, 1)
    assert other["difference"] == pytest.approx(0.03, abs=1e-4)
    assert 0.015 < other["difference_low"] < 0.03 < other["difference_high"] < 0.045
    for candidate in ("base", "other"):
        twice = {"AB_0003": 0.5, "AB_0004": 0.5}
        write_run(study, f"inner/{candidate}/2", twice, **inner(2))
    outcome = run_join_folds(run_stage, study)
    assert outcome.code == 1
    for candidate in ("base", "other"):
        for patient in ("TCGA_AB_0003_20000101", "TCGA_AB_0004_20000101"):
            assert f"inner/{candidate}: {patient} is tested in folds 0, 2\n" in outcome.error


def test_a_study_needs_only_folds(run_stage: RunStage, study: Path) -> None:
    """Without candidates and institutions, tables have their headers; counts stay integers."""
    drop_trainings(study, "choices")
    assert run_join_folds(run_stage, study).code == 0
    folder = study.parent / "joined"
    for name in ("choices", "by_institution", "institutions"):
        table = pd.read_csv(folder / f"{name}.csv")
        assert table.empty
        assert len(table.columns) >= 2
    write_run(study, "choices/base/0", random_dice("AB", 12, 0.8, 1))
    assert run_join_folds(run_stage, study).code == 0
    assert (folder / "choices.csv").read_text().splitlines()[1].endswith(",1,0,12")


def test_a_patient_without_tumor_is_counted_but_has_no_dice(
    run_stage: RunStage, study: Path
) -> None:
    write_run(study, "folds/context/2", {"EF_0001": np.nan})
    assert run_join_folds(run_stage, study).code == 0
    scores = json.loads((study.parent / "study.json").read_text())["folds"]["context"]
    assert (scores["n_patients"], scores["n_patients_dice"]) == (25, 24)
    expected = pd.read_csv(study.parent / "joined/out_of_fold.csv")["dice"].mean()
    assert scores["dice_patient_mean"] == pytest.approx(expected, abs=1e-5)


def test_an_institution_with_few_patients_has_no_interval(run_stage: RunStage, study: Path) -> None:
    write_run(study, "institutions/context/0", random_dice("AB", 12, 0.8, 1))
    write_run(study, "institutions/context/1", random_dice("EZ", 1, 0.8, 1))
    assert run_join_folds(run_stage, study).code == 0
    many, few = pd.read_csv(study.parent / "joined/by_institution.csv").to_dict("records")
    assert (many["institution"], many["n_patients"]) == ("AB", 12)
    assert many["dice_patient_mean_low"] < many["dice_patient_mean"]
    assert (few["institution"], few["n_patients"]) == ("EZ", 1)
    assert np.isnan(few["dice_patient_mean_low"])
    assert few["dice_patient_mean"] > 0


def test_a_left_out_institution_is_compared_patient_by_patient(
    run_stage: RunStage, study: Path
) -> None:
    """Each patient is compared with its out-of-fold Dice, if it has one."""
    dice = {name: value + 0.02 for name, value in random_dice("AB", 12, 0.8, 1).items()}
    loss = {name: 0.02 + 0.01 * (number % 2) for number, name in enumerate(dice)}
    write_run(study, "institutions/context/0", {name: dice[name] - loss[name] for name in dice})
    write_run(study, "institutions/context/1", {"EZ_0001": 0.8})
    write_run(study, "institutions/frozen/1", {"EZ_0001": 0.7})
    assert run_join_folds(run_stage, study).code == 0
    folder = study.parent / "joined"
    many, other = pd.read_csv(folder / "by_institution.csv").to_dict("records")
    assert many["difference"] == pytest.approx(-0.025, abs=1e-4)
    assert -0.03 < many["difference_low"] < -0.025 < many["difference_high"] < -0.02
    assert (many["n_patients_difference"], other["n_patients_difference"]) == (12, 0)
    assert np.isnan(other["difference"])
    assert np.isnan(many["dice_frozen_mean"])
    assert other["dice_frozen_mean"] == pytest.approx(0.7)
    table = pd.read_csv(folder / "institutions.csv").dropna(subset="difference")
    np.testing.assert_allclose(table["dice_out_of_fold"], list(dice.values()), atol=1e-4)
    written = json.loads((study.parent / "study.json").read_text())["institutions"]["context"]
    assert written["difference"] == pytest.approx(-0.025, abs=1e-4)
    assert (written["n_patients_dice"], written["n_patients_difference"]) == (13, 12)


def test_the_worst_patients_have_their_share_of_the_total_error(
    run_stage: RunStage, study: Path
) -> None:
    assert run_join_folds(run_stage, study).code == 0
    table = pd.read_csv(study.parent / "joined/worst.csv")
    all_patients = pd.read_csv(study.parent / "joined/out_of_fold.csv")
    assert table["dice"].tolist() == sorted(all_patients["dice"])[:10]
    np.testing.assert_allclose(
        table["share"], (1 - table["dice"]) / (1 - all_patients["dice"]).sum(), atol=1e-4
    )
    [reviewed] = table.dropna(subset="seen").to_dict("records")
    assert (reviewed["patient_id"], reviewed["kind"]) == ("TCGA_CD_0003_20000101", "small_lesion")
    shares = json.loads((study.parent / "study.json").read_text())["worst"]
    assert shares["small_lesion"] == pytest.approx(reviewed["share"], abs=1e-5)
    assert sum(shares.values()) == pytest.approx(table["share"].sum(), abs=1e-4)
    assert set(shares) == {"small_lesion", "not_reviewed"}


def write_starting(study: Path) -> None:
    """Add a training with a split by slice, whose network is better than copied masks."""
    scored = [("train", NETWORK, 0.9), ("test", NETWORK, 0.8), ("test", COPIED, 0.7)]
    for split in ("train", "test"):
        scored += [(split, EMPTY, 0.0), (split, REFERENCE, 1.0)]
    write_run(study, "starting/x/0", {"ZZ_0001": 0.5})
    for path in files(study):
        rewrite(study, path.stem, lambda t: t.replace({"training": {"starting/x/0": "starting"}}))
    rows = pd.DataFrame(scored, columns=["split", "predictor", "micro_iou"])
    rows = rows.assign(training="starting", n_slices=393)
    rewrite(study, "definitions", lambda t: pd.concat([t, rows]))


def test_the_original_recipe_is_listed_with_the_trivial_predictors(
    run_stage: RunStage, study: Path
) -> None:
    write_starting(study)
    assert run_join_folds(run_stage, study).code == 0
    scores = json.loads((study.parent / "study.json").read_text())["starting"]
    assert {
        split: {predictor: values.pop("micro_iou") for predictor, values in predictors.items()}
        for split, predictors in scores.items()
    } == {
        "train": {"network": 0.9, "always_empty": 0.0, "reference": 1.0},
        "test": {"network": 0.8, "always_empty": 0.0, "reference": 1.0, "copied_mask": 0.7},
    }
    assert scores["test"]["copied_mask"] == {"n_slices": 393}


def drop_copied_masks(study: Path) -> None:
    """Make the training look as if it were split by patient."""
    write_starting(study)
    rewrite(study, "definitions", lambda t: t[t["predictor"] != COPIED])


def add_fold_with_tested_patients(study: Path) -> None:
    write_run(study, "folds/frozen/2", {"AB_0003": 0.5, "AB_0004": 0.5})


def set_field(table: str, name: str, column: str, value: str) -> Callable[[Path], None]:
    """Return a function that sets a field in all rows of a training."""

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[rows["training"] == name, column] = value
        return rows

    return lambda study: rewrite(study, table, change)


def add_text_to_a_score(study: Path) -> None:
    write_starting(study)
    set_field("definitions", "starting", "micro_iou", "abc0.9")(study)


def repeat_definitions(study: Path) -> None:
    write_starting(study)
    rewrite(study, "definitions", lambda t: pd.concat([t, t]))


def add_conflict_marker(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the line that Git writes at a merge conflict."""
    return pd.concat([rows, pd.DataFrame({"training": ["<<<<<<< HEAD"]})])


def rename_column(column: str) -> Callable[[Path], None]:
    return lambda study: rewrite(study, "patients", lambda t: t.rename(columns={column: "x"}))


def write_invalid_reviews(study: Path) -> None:
    review = "TCGA_AB_0003_20000101,0.8,missed,"
    write_reviews(study, review, review, "TCGA_AB_0004_20000101,0.8,bad luck,")


def write_outdated_reviews(study: Path) -> None:
    write_reviews(study, "TCGA_AB_0003_20000101,0.1,missed,", "TCGA_ZZ_1_20000101,0.2,missed,")


def add_candidate_with_other_patients(study: Path) -> None:
    write_run(study, "choices/new/0", {"EF_0001": 0.5})


@pytest.mark.parametrize(
    ("corrupt", "line"),
    [
        (add_fold_with_tested_patients, "TCGA_AB_0003_20000101 .* 0, 2"),
        (add_fold_with_tested_patients, "TCGA_AB_0004_20000101 .* 0, 2"),
        (rename_column("fp_healthy"), "patients.csv: .*fp_healthy"),
        (drop_copied_masks, r"definitions.csv .*starting .*'test', 'mask of the nearest"),
        (add_text_to_a_score, "definitions.csv: .*abc0.9"),
        (repeat_definitions, "definitions.csv: starting, train, network "),
        (
            lambda study: rewrite(study, "patients", lambda t: t.drop(index=[0, 1])),
            r"patients.csv: 10 .*choices/base/0\b.* 12\b",
        ),
        (
            lambda study: rewrite(study, "patients", add_conflict_marker),
            "patients.csv: <<<<<<< HEAD is not in trainings.csv",
        ),
        (write_invalid_reviews, "worst.csv: TCGA_AB_0004_20000101 .*'bad luck'"),
        (write_invalid_reviews, "worst.csv: TCGA_AB_0003_20000101 "),
        (lambda study: (study / "worst.csv").write_text("a,b"), "worst.csv: .*patient_id"),
        (write_outdated_reviews, r"TCGA_AB_0003_20000101 .* 0\.1; .* 0\.\d+"),
        (write_outdated_reviews, r"TCGA_ZZ_1_20000101 .* 0\.2; .* no such patient"),
        (
            set_field("trainings", "folds/frozen/1", "train.epochs", "49"),
            r"folds/frozen/1: train.epochs is 49; .*folds/frozen/0\b.* 50\b",
        ),
        (
            set_field("trainings", "choices/base/1", "split.test_fold", "3"),
            r"choices/base/1: split.test_fold is 3; .*choices/base/0\b.* 0\b",
        ),
        (
            set_field("patients", "folds/frozen/0", "tp", "many"),
            "patients.csv: .*many",
        ),
        (
            set_field("patients", "folds/frozen/1", "training", "x"),
            "patients.csv: x is not in trainings.csv",
        ),
        (
            set_field("trainings", "folds/frozen/1", "training", "folds/frozen/0"),
            "trainings.csv: folds/frozen/0 ",
        ),
        (
            set_field("trainings", "folds/frozen/0", "minutes", "long"),
            "trainings.csv: .*long",
        ),
        (lambda study: (study / "patients.csv").unlink(), "patients.csv: .*No such file"),
        (lambda study: (study / "trainings.csv").write_text(""), "trainings.csv: .*No columns"),
        (add_candidate_with_other_patients, r"choices/new: repeat 0\b.*\bbase\b"),
        (
            set_field("trainings", "choices/other/0", "train.repeat", "5"),
            r"choices/other\b.*\brepeat\b.*\bbase\b.* 0, 1\b",
        ),
        (
            lambda study: drop_trainings(study, "choices/base"),
            r"no training .*choices/base/.*\bother\b",
        ),
        (lambda study: drop_trainings(study, "folds/frozen"), "no training .*folds/frozen/"),
        (lambda study: drop_trainings(study, "folds/context"), "no training .*folds/context/"),
    ],
)
def test_tables_that_do_not_fit_together_are_an_error(
    run_stage: RunStage, study: Path, corrupt: Any, line: str
) -> None:
    """The message has a line that matches, and no output is written."""
    corrupt(study)
    outcome = run_join_folds(run_stage, study)
    assert outcome.code == 1
    assert re.search(line, outcome.error)
    assert {path.name for path in study.parent.iterdir()} == {"study", "params.yaml"}


def test_the_same_tables_give_the_same_bytes(run_stage: RunStage, study: Path) -> None:
    written = []
    for _ in range(2):
        assert run_join_folds(run_stage, study).code == 0
        files = sorted((study.parent / "joined").rglob("*.*"))
        written.append([path.read_bytes() for path in [*files, study.parent / "study.json"]])
    assert len(written[0]) == 7
    assert written[0] == written[1]
