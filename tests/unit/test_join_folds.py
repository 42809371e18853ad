"""The study's figures follow from the tables of its trainings, and each patient counts once."""

import json
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
    """Add a training that was tested on patients with the given Dice to the study's tables.

    `changes` are of its cost, or of its params, named with `__` for the dot.
    """
    table = pd.DataFrame({"patient_id": [f"TCGA_{each}_20000101" for each in dice]})
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
    """Change one of the study's tables; its fields are text."""
    path = study / f"{table}.csv"
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)


def without(study: Path, prefix: str) -> None:
    """Drop all trainings whose name begins so."""
    for path in files(study):
        rewrite(study, path.stem, lambda t: t[~t["training"].str.startswith(prefix)])


def drawn(institution: str, n_patients: int, mean: float, seed: int) -> dict[str, float]:
    dice = np.random.default_rng(seed).normal(mean, 0.05, n_patients).clip(0.1, 0.95)
    return {f"{institution}_{number:04d}": value for number, value in enumerate(dice)}


def write_seen(folder: Path, *lines: str) -> None:
    (folder / "worst.csv").write_text("\n".join(["patient_id,dice,kind,seen", *lines]) + "\n")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two folds of 12 patients under two recipes, and two candidates, one of them twice."""
    folder, folds = tmp_path / "study", [drawn("AB", 12, 0.8, 1), drawn("CD", 12, 0.7, 2)]
    folder.mkdir()
    for number, dice in enumerate(folds):
        cost = {"minutes": 10.0, "images_per_s": 100.0 + number, "device": "1 × cpu in bf16-mixed"}
        write_run(folder, f"folds/frozen/{number}", dice, **cost)
        better = {name: value + 0.02 for name, value in dice.items()}
        cost = cost if number else {}  # of an interrupted training
        write_run(folder, f"folds/context/{number}", better, **cost)
    seen = f"TCGA_CD_0003_20000101,{better['CD_0003']:.5f},small_lesion,a tumor of 60 pixels"
    write_seen(folder, seen)
    write_run(folder, "choices/base/0", folds[0])
    write_run(folder, "choices/base/1", {name: v + 0.01 for name, v in folds[0].items()})
    write_run(folder, "choices/other/0", {name: v + 0.025 for name, v in folds[0].items()})
    return folder


def join(run_stage: RunStage, study: Path) -> Outcome:
    out = study.parent
    paths = [*files(study), study / "worst.csv", out / "study.json", out / "joined"]
    return run_stage(join_folds.main, paths)


def test_figures_are_those_of_all_patients_together(run_stage: RunStage, study: Path) -> None:
    assert join(run_stage, study) == Outcome(0, "")
    folder = study.parent / "joined"
    table = pd.read_csv(folder / "out_of_fold.csv")
    assert table["patient_id"].is_unique
    assert table["institution"].value_counts().to_dict() == {"AB": 12, "CD": 12}
    assert (table["fold"] == (table["institution"] == "CD")).all()
    np.testing.assert_allclose(table["dice_frozen"], table["dice"] - 0.02)
    np.testing.assert_allclose(table["difference"], 0.02)
    written = json.loads((study.parent / "study.json").read_text())
    earlier, found = (written["folds"][name] for name in ("frozen", "context"))
    assert found["n_patients"] == 24
    assert found["n_folds"] == 2
    assert (earlier["minutes"], earlier["images_per_s"]) == (10, 100.5)
    assert (found["minutes"], found["images_per_s"]) == (10, 101)
    assert found["device"] == "1 × cpu in bf16-mixed"
    first = table[table["fold"] == 0]
    assert written["untouched"]["context"]["n_patients"] == len(first) == 12
    alone = written["untouched"]["context"]["dice_patient_mean"]
    assert alone == pytest.approx(first["dice"].mean(), abs=1e-5)
    assert found["difference"] == pytest.approx(0.02, abs=1e-5)
    assert found["difference_low"] == pytest.approx(0.02, abs=1e-5)
    assert (found["n_patients_difference"], "difference" in earlier) == (24, False)
    assert found["dice_patient_mean"] == pytest.approx(table["dice"].mean(), abs=1e-5)
    assert found["dice_patient_median"] == pytest.approx(table["dice"].median(), abs=1e-5)
    wanted = table["tp"].sum() / table[["tp", "fp", "fn"]].sum().sum()
    assert found["iou"] == pytest.approx(wanted, abs=1e-5)
    wanted = table["fp_healthy"].sum() / table["fp"].sum()
    assert found["false_positives_on_healthy_slices"] == pytest.approx(wanted, abs=1e-5)
    estimate = Bootstrap(1000, 1).mean(table["dice"])
    assert found["dice_patient_mean_low"] == pytest.approx(estimate.low, abs=1e-5)
    assert found["dice_patient_mean_high"] == pytest.approx(estimate.high, abs=1e-5)
    assert (folder / "figures/dice_by_patient.png").stat().st_size > 10_000


def test_candidates_are_compared_patient_by_patient(run_stage: RunStage, study: Path) -> None:
    """Patients differ by 0.05, yet a difference that is the same in all of them has no width.

    Repeat 1 of `later` is below that of the base, and above the mean of its two.
    """
    later = {name: value + 0.008 for name, value in drawn("AB", 12, 0.8, 1).items()}
    write_run(study, "choices/later/1", later)
    assert join(run_stage, study).code == 0
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
        assert other[f"difference{name}"] == pytest.approx(0.025, abs=1e-4)  # of repeat 0
    assert other["dice_patient_mean_high"] - other["dice_patient_mean_low"] > 0.02


def test_a_difference_is_over_the_repeats_that_both_have(run_stage: RunStage, study: Path) -> None:
    """Of repeats 0 and 1, better by 0.025 and by 0.005; base has no repeat 2."""
    dice = drawn("AB", 12, 0.8, 1)
    for repeat, gain in ((1, 0.015), (2, 0.1)):
        write_run(study, f"choices/other/{repeat}", {name: v + gain for name, v in dice.items()})
    assert join(run_stage, study).code == 0
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
        dice = drawn(institution, 12, 0.8, number)
        write_run(study, f"inner/base/{number}", dice, **inner(number))
        better = {name: value + gain for name, value in dice.items()}
        write_run(study, f"inner/other/{number}", better, **inner(number))
    assert join(run_stage, study).code == 0
    table = pd.read_csv(study.parent / "joined/choices.csv").set_index("training")
    other = table.loc["inner/other"]
    assert (other["n_patients"], other["n_repeats"], other["n_repeats_difference"]) == (24, 1, 1)
    assert other["difference"] == pytest.approx(0.03, abs=1e-4)
    assert 0.015 < other["difference_low"] < 0.03 < other["difference_high"] < 0.045
    for candidate in ("base", "other"):
        twice = {"AB_0003": 0.5, "AB_0004": 0.5}
        write_run(study, f"inner/{candidate}/2", twice, **inner(2))
    outcome = join(run_stage, study)
    assert outcome.code == 1
    for candidate in ("base", "other"):
        for patient in ("TCGA_AB_0003_20000101", "TCGA_AB_0004_20000101"):
            told = f"inner/{candidate}: {patient} is tested in folds 0, 2\n"
            assert told in outcome.error


def test_folds_alone_are_enough(run_stage: RunStage, study: Path) -> None:
    """No candidates, no institutions, one fold: tables with their headers, and whole numbers."""
    without(study, "choices")
    assert join(run_stage, study).code == 0
    folder = study.parent / "joined"
    for name in ("choices", "by_institution", "institutions"):
        table = pd.read_csv(folder / f"{name}.csv")
        assert table.empty
        assert len(table.columns) >= 2
    write_run(study, "choices/base/0", drawn("AB", 12, 0.8, 1))
    assert join(run_stage, study).code == 0
    assert (folder / "choices.csv").read_text().splitlines()[1].endswith(",1,0,12")


def test_a_patient_without_tumor_counts_and_has_no_dice(run_stage: RunStage, study: Path) -> None:
    write_run(study, "folds/context/2", {"EF_0001": np.nan})
    assert join(run_stage, study).code == 0
    found = json.loads((study.parent / "study.json").read_text())["folds"]["context"]
    assert (found["n_patients"], found["n_patients_dice"]) == (25, 24)
    wanted = pd.read_csv(study.parent / "joined/out_of_fold.csv")["dice"].mean()
    assert found["dice_patient_mean"] == pytest.approx(wanted, abs=1e-5)


def test_an_institution_with_few_patients_has_no_interval(run_stage: RunStage, study: Path) -> None:
    write_run(study, "institutions/frozen/0", drawn("AB", 12, 0.8, 1))
    write_run(study, "institutions/frozen/1", drawn("EZ", 1, 0.8, 1))
    assert join(run_stage, study).code == 0
    many, few = pd.read_csv(study.parent / "joined/by_institution.csv").to_dict("records")
    assert (many["institution"], many["n_patients"]) == ("AB", 12)
    assert many["dice_patient_mean_low"] < many["dice_patient_mean"]
    assert (few["institution"], few["n_patients"]) == ("EZ", 1)
    assert np.isnan(few["dice_patient_mean_low"])
    assert few["dice_patient_mean"] > 0


def test_a_left_out_institution_is_compared_patient_by_patient(
    run_stage: RunStage, study: Path
) -> None:
    """With the Dice of the same patients out of fold, as far as they have one."""
    known = drawn("AB", 12, 0.8, 1)
    loss = {name: 0.02 + 0.01 * (number % 2) for number, name in enumerate(known)}
    write_run(study, "institutions/frozen/0", {name: known[name] - loss[name] for name in known})
    write_run(study, "institutions/frozen/1", {"EZ_0001": 0.8})
    assert join(run_stage, study).code == 0
    folder = study.parent / "joined"
    many, other = pd.read_csv(folder / "by_institution.csv").to_dict("records")
    assert many["difference"] == pytest.approx(-0.025, abs=1e-4)
    assert -0.03 < many["difference_low"] < -0.025 < many["difference_high"] < -0.02
    assert (many["n_patients_difference"], other["n_patients_difference"]) == (12, 0)
    assert np.isnan(other["difference"])
    table = pd.read_csv(folder / "institutions.csv").dropna(subset="difference")
    np.testing.assert_allclose(table["dice_out_of_fold"], list(known.values()), atol=1e-4)
    written = json.loads((study.parent / "study.json").read_text())["institutions"]["frozen"]
    assert written["difference"] == pytest.approx(-0.025, abs=1e-4)
    assert (written["n_patients_dice"], written["n_patients_difference"]) == (13, 12)


def test_the_worst_patients_make_up_a_share_of_the_error(run_stage: RunStage, study: Path) -> None:
    assert join(run_stage, study).code == 0
    table = pd.read_csv(study.parent / "joined/worst.csv")
    everyone = pd.read_csv(study.parent / "joined/out_of_fold.csv")
    assert table["dice"].tolist() == sorted(everyone["dice"])[:10]
    np.testing.assert_allclose(
        table["share"], (1 - table["dice"]) / (1 - everyone["dice"]).sum(), atol=1e-4
    )
    [seen] = table.dropna(subset="seen").to_dict("records")
    assert (seen["patient_id"], seen["kind"]) == ("TCGA_CD_0003_20000101", "small_lesion")
    shares = json.loads((study.parent / "study.json").read_text())["worst"]
    assert shares["small_lesion"] == pytest.approx(seen["share"], abs=1e-5)
    assert sum(shares.values()) == pytest.approx(table["share"].sum(), abs=1e-4)
    assert set(shares) == {"small_lesion", "not_looked_at"}


def write_starting(study: Path) -> None:
    """Add a training by slice, its network better than copied masks."""
    scored = [("train", NETWORK, 0.9), ("test", NETWORK, 0.8), ("test", COPIED, 0.7)]
    for split in ("train", "test"):
        scored += [(split, EMPTY, 0.0), (split, REFERENCE, 1.0)]
    write_run(study, "starting/x/0", {"ZZ_0001": 0.5})
    for path in files(study):
        rewrite(study, path.stem, lambda t: t.replace({"training": {"starting/x/0": "starting"}}))
    rows = pd.DataFrame(scored, columns=["split", "predictor", "micro_iou"])
    rows = rows.assign(training="starting", n_slices=393)
    rewrite(study, "definitions", lambda t: pd.concat([t, rows]))


def test_the_starting_recipe_stands_beside_copied_masks(run_stage: RunStage, study: Path) -> None:
    write_starting(study)
    assert join(run_stage, study).code == 0
    scores = json.loads((study.parent / "study.json").read_text())["starting"]
    assert {
        split: {predictor: values.pop("micro_iou") for predictor, values in predictors.items()}
        for split, predictors in scores.items()
    } == {
        "train": {"network": 0.9, "always_empty": 0.0, "reference": 1.0},
        "test": {"network": 0.8, "always_empty": 0.0, "reference": 1.0, "copied_mask": 0.7},
    }
    assert scores["test"]["copied_mask"] == {"n_slices": 393}


def by_patient(study: Path) -> None:
    write_starting(study)
    rewrite(study, "definitions", lambda t: t[t["predictor"] != COPIED])


def tested_twice(study: Path) -> None:
    write_run(study, "folds/frozen/2", {"AB_0003": 0.5, "AB_0004": 0.5})


def set_field(table: str, name: str, column: str, value: str) -> Callable[[Path], None]:
    """Set a field in all rows of a training."""

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        rows.loc[rows["training"] == name, column] = value
        return rows

    return lambda study: rewrite(study, table, change)


def by_letters(study: Path) -> None:
    write_starting(study)
    set_field("definitions", "starting", "micro_iou", "abc0.9")(study)


def told_twice(study: Path) -> None:
    write_starting(study)
    rewrite(study, "definitions", lambda t: pd.concat([t, t]))


def conflicting(rows: pd.DataFrame) -> pd.DataFrame:
    """Add a line that Git leaves where it could not merge."""
    return pd.concat([rows, pd.DataFrame({"training": ["<<<<<<< HEAD"]})])


def renamed(column: str) -> Callable[[Path], None]:
    return lambda study: rewrite(study, "patients", lambda t: t.rename(columns={column: "x"}))


def of_no_kind(study: Path) -> None:
    twice = "TCGA_AB_0003_20000101,0.8,missed,"
    write_seen(study, twice, twice, "TCGA_AB_0004_20000101,0.8,bad luck,")


def long_ago(study: Path) -> None:
    write_seen(study, "TCGA_AB_0003_20000101,0.1,missed,", "TCGA_ZZ_1_20000101,0.2,missed,")


def others(study: Path) -> None:
    write_run(study, "choices/strangers/0", {"EF_0001": 0.5})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (tested_twice, "TCGA_AB_0003_20000101 is tested in folds 0, 2"),
        (tested_twice, "TCGA_AB_0004_20000101 is tested in folds 0, 2"),
        (renamed("fp_healthy"), "patients.csv: not a table of the study"),
        (by_patient, "no definitions of starting for ('test', "),
        (by_letters, "definitions.csv: not a table of the study"),
        (told_twice, "definitions.csv: starting, train, network twice"),
        (
            lambda study: rewrite(study, "patients", lambda t: t.drop(index=[0, 1])),
            "patients.csv: 10 patients of choices/base/0, which tested 12",
        ),
        (
            lambda study: rewrite(study, "patients", conflicting),
            "patients.csv: <<<<<<< HEAD is not in trainings.csv",
        ),
        (of_no_kind, "TCGA_AB_0004_20000101 is of the kind 'bad luck'"),
        (of_no_kind, "TCGA_AB_0003_20000101 stands there twice"),
        (lambda study: (study / "worst.csv").write_text("a,b"), "no table of patients looked at"),
        (long_ago, "TCGA_AB_0003_20000101 was looked at with a Dice of 0.1; it is 0."),
        (long_ago, "TCGA_ZZ_1_20000101 was looked at with a Dice of 0.2; it is not there"),
        (
            set_field("trainings", "folds/frozen/1", "train.epochs", "49"),
            "folds/frozen/1: train.epochs is 49, in folds/frozen/0 50",
        ),
        (
            set_field("trainings", "choices/base/1", "split.test_fold", "3"),
            "choices/base/1: split.test_fold is 3, in choices/base/0 0",
        ),
        (
            set_field("patients", "folds/frozen/0", "tp", "many"),
            "patients.csv: not a table of the study",
        ),
        (
            set_field("patients", "folds/frozen/1", "training", "x"),
            "patients.csv: x is not in trainings.csv",
        ),
        (
            set_field("trainings", "folds/frozen/1", "training", "folds/frozen/0"),
            "trainings.csv: folds/frozen/0 is listed twice",
        ),
        (
            set_field("trainings", "folds/frozen/0", "minutes", "long"),
            "trainings.csv: not a table of the study",
        ),
        (lambda study: (study / "patients.csv").unlink(), "patients.csv: not a table of the study"),
        (lambda study: (study / "trainings.csv").write_text(""), "trainings.csv: not a table"),
        (others, "choices/strangers: repeat 0 tests other patients than base"),
        (
            set_field("trainings", "choices/other/0", "train.repeat", "5"),
            "choices/other: none of the repeats of base, 0, 1",
        ),
        (lambda study: without(study, "choices/base"), "base is not among the candidates other"),
        (lambda study: without(study, "folds/frozen"), "folds/frozen: no training of that name"),
        (lambda study: without(study, "folds/context"), "folds/context: no training of that name"),
    ],
)
def test_tables_that_do_not_fit_are_refused(
    run_stage: RunStage, study: Path, spoil: Any, told: str
) -> None:
    spoil(study)
    outcome = join(run_stage, study)
    assert outcome.code == 1
    assert told in outcome.error
    left = {path.name for path in study.parent.iterdir()}
    assert left == {"study", "params.yaml"}


def test_the_same_tables_give_the_same_bytes(run_stage: RunStage, study: Path) -> None:
    written = []
    for _ in range(2):
        assert join(run_stage, study).code == 0
        files = sorted((study.parent / "joined").rglob("*.*"))
        written.append([path.read_bytes() for path in [*files, study.parent / "study.json"]])
    assert len(written[0]) == 7
    assert written[0] == written[1]
