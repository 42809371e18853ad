"""The patients of the lowest Dice, and what was seen in them."""

from pathlib import Path

import pandas as pd

from pipeline.outputs import DECIMALS
from pipeline.refusals import Refusal, refuse

N_WORST = 10  # patients whose predictions were looked at
# What is wrong in a patient above all: a sequence that is missing, a lesion of few pixels, a
# reference that another reader would draw otherwise, tumor seen where there is none, tumor missed.
KINDS = ("missing_sequence", "small_lesion", "reference", "false_positive", "missed")
UNSEEN = "not_looked_at"


def read_seen(path: Path) -> pd.DataFrame:
    """Return what somebody saw who looked at patients: `patient_id`, `dice`, `kind`, `seen`.

    `dice` is that of the prediction looked at. Refuses what is no such table.
    """
    try:
        table = pd.read_csv(path, dtype={"patient_id": str}, keep_default_na=False)
        table = table[["patient_id", "dice", "kind", "seen"]].astype({"dice": float})
    except (OSError, ValueError, KeyError) as error:
        raise Refusal(
            f"{path}: no table of patients looked at ({error}); restore it from Git"
        ) from None
    problems = [
        f"{path}: {patient} is of the kind {kind!r}"
        for patient, kind in zip(table["patient_id"], table["kind"], strict=True)
        if kind not in KINDS
    ]
    twice = table["patient_id"][table["patient_id"].duplicated()]
    problems += [f"{path}: {patient} stands there twice" for patient in twice]
    if problems:
        refuse(problems, f"Kinds are {', '.join(KINDS)}; a patient has one.")
    return table


def worst(patients: pd.DataFrame, seen: pd.DataFrame) -> pd.DataFrame:
    """Return the patients of the lowest Dice, and what was seen in each.

    `share` is the patient's part of what all patients together lack to a Dice of 1. What was seen
    in a prediction of another Dice, or in a patient who is not there, says nothing: refused.
    """
    found = patients.set_index("patient_id")["dice"].round(DECIMALS)
    problems = [
        f"{patient} was looked at with a Dice of {dice}; it is {found.get(patient, 'not there')}"
        for patient, dice in zip(seen["patient_id"], seen["dice"], strict=True)
        if found.get(patient) != dice
    ]
    if problems:
        refuse(problems, "Look at their predictions and correct the table, or drop the rows.")
    lacking = 1 - patients["dice"]
    table = patients.assign(share=lacking / lacking.sum()).nsmallest(N_WORST, "dice", keep="all")
    table = table.merge(seen.drop(columns="dice"), "left", "patient_id", validate="one_to_one")
    table["kind"] = table["kind"].fillna(UNSEEN)
    counted = ["n_abnormal", "tp", "fp", "fn", "fp_healthy"]
    return table[["patient_id", "fold", "dice", "share", "kind", "seen", *counted]]
