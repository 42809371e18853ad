"""The patients with the lowest Dice, and what a review of their predictions found."""

from pathlib import Path

import pandas as pd

from pipeline.outputs import DECIMALS
from pipeline.refusals import Refusal, refuse

N_WORST = 10  # patients to review
# The main cause of a low Dice: a missing sequence, a lesion of few pixels, a reference that another
# reader would draw differently, a false positive, a missed tumor.
KINDS = ("missing_sequence", "small_lesion", "reference", "false_positive", "missed")
NOT_REVIEWED = "not_reviewed"


def read_reviews(path: Path) -> pd.DataFrame:
    """Return the reviews of single patients' predictions: `patient_id`, `dice`, `kind`, `seen`.

    `seen` describes what the reviewer saw, and `dice` is the Dice of the reviewed prediction.
    Raises an error if the file is not such a table.
    """
    try:
        table = pd.read_csv(path, dtype={"patient_id": str}, keep_default_na=False)
        table = table[["patient_id", "dice", "kind", "seen"]].astype({"dice": float})
    except (OSError, ValueError, KeyError) as error:
        raise Refusal(
            f"{path}: not a table of reviewed patients ({error}); restore it from Git"
        ) from None
    problems = [
        f"{path}: {patient} has the unknown kind {kind!r}"
        for patient, kind in zip(table["patient_id"], table["kind"], strict=True)
        if kind not in KINDS
    ]
    twice = table["patient_id"][table["patient_id"].duplicated()]
    problems += [f"{path}: {patient} has two rows" for patient in twice]
    if problems:
        refuse(problems, f"Give each patient one row with one of the kinds {', '.join(KINDS)}.")
    return table


def worst(patients: pd.DataFrame, reviews: pd.DataFrame) -> pd.DataFrame:
    """Return the N_WORST patients with the lowest Dice, and ties, with their reviews.

    `share` is the patient's fraction of the total error, which is the sum of 1 - Dice over all
    patients. Raises an error if a review belongs to a prediction with another Dice, or to a patient
    who is not in `patients`.
    """
    current = patients.set_index("patient_id")["dice"].round(DECIMALS)
    problems = [
        f"{patient} was reviewed with a Dice of {dice}; now "
        + (f"it is {current[patient]}" if patient in current else "there is no such patient")
        for patient, dice in zip(reviews["patient_id"], reviews["dice"], strict=True)
        if current.get(patient) != dice
    ]
    if problems:
        refuse(
            problems,
            "Review their predictions and correct study/worst.csv, or delete these rows from it.",
        )
    error = 1 - patients["dice"]
    table = patients.assign(share=error / error.sum()).nsmallest(N_WORST, "dice", keep="all")
    table = table.merge(reviews.drop(columns="dice"), "left", "patient_id", validate="one_to_one")
    table["kind"] = table["kind"].fillna(NOT_REVIEWED)
    counts = ["n_abnormal", "tp", "fp", "fn", "fp_healthy"]
    return table[["patient_id", "fold", "dice", "share", "kind", "seen", *counts]]
