"""data.csv: one row a patient, with whatever codes a data set has; read, cleaned, and joined.

Its text is the one thing here that somebody typed. Codes end up in tables, pages and the model
card, so what would be markup or a formula there is replaced as they are read.
"""

import re
import unicodedata
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_numeric_dtype

from pipeline.refusals import Refusal, print_list
from scans.names import person, same_name

# The columns of data.csv, by readable names. Values stay the codes of the file, which comes without
# a code book; ages are in years.
CLINICAL_COLUMNS = {
    "Patient": "case_id",
    "RNASeqCluster": "rnaseq_cluster",
    "MethylationCluster": "methylation_cluster",
    "miRNACluster": "mirna_cluster",
    "CNCluster": "copy_number_cluster",
    "RPPACluster": "rppa_cluster",
    "OncosignCluster": "oncosign_cluster",
    "COCCluster": "cluster_of_clusters",
    "histological_type": "histological_type",
    "neoplasm_histologic_grade": "grade",
    "tumor_tissue_site": "tumor_tissue_site",
    "laterality": "laterality",
    "tumor_location": "tumor_location",
    "gender": "gender",
    "age_at_initial_pathologic": "age",
    "race": "race",
    "ethnicity": "ethnicity",
    "death01": "death",
}
OWN = ("subject", "institution")  # optional columns that say more than a folder's name does
# What others call the columns by which scores are grouped, in small letters.
OTHERS = {
    **{name: name for name in (*OWN, "age", "gender", "grade")},
    **{"sex": "gender", "who_grade": "grade", "site": "institution", "center": "institution"},
}

ODD = re.compile(r"[^\w .,;%/()+-]")  # what no code needs, but HTML, Markdown or a formula does
SIGNED = re.compile(r"[-+](?![\d.,]+$)")  # a sign before anything but a number begins a formula
AGE = re.compile(r"(\d{1,3}(?:[.,]\d+)?) *(?:y|yo|yr|yrs|years?)?\.?", re.IGNORECASE)
OLDEST = 120  # years


def clean(code: str) -> str:
    """Return a code with `_` for what would be markup, and before what would be a formula."""
    text = ODD.sub("_", unicodedata.normalize("NFC", code))
    return f"_{text}" if SIGNED.match(text) else text


def years(age: str) -> float:
    """Return an age in years, as in `30`, `30.5`, `30,5`, `30 y` or `030Y`; NaN of another text."""
    match = AGE.fullmatch(age)
    value = float(match[1].replace(",", ".")) if match else float("nan")
    return value if value <= OLDEST else float("nan")


def read_table(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return data.csv twice: as pandas understands it, and as text; refuse what is no table."""

    def read(**text: Any) -> pd.DataFrame:
        table: pd.DataFrame = pd.read_csv(path, index_col=False, skip_blank_lines=False, **text)
        return table

    try:
        with warnings.catch_warnings(action="error"):  # pandas shifts or cuts off ragged rows
            typed, text = read(), read(dtype=str, keep_default_na=False)
    except (ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise Refusal(
            f"{path}: not a table in CSV ({reason}); correct it where it comes from, then "
            "`dvc repro -f acquire`"
        ) from None
    if "Patient" not in typed:
        raise Refusal(
            f"{path}: no column `Patient`, only {list(typed)}; "
            "a data set without clinical data needs that column alone"
        )
    return typed, text.apply(lambda column: column.str.strip())


def column_name(column: str) -> str:
    """Return the readable name of a column of data.csv."""
    known = OTHERS.get(column.strip().lower()) or CLINICAL_COLUMNS.get(column)
    return known or clean(column)


def read_column(
    name: str, typed: pd.Series, text: pd.Series
) -> tuple[pd.Series, list[tuple[int, str]]]:
    """Return a column's values, and for each changed row its position and what happened to it."""
    given = typed.notna()
    if name == "case_id":
        return text, []
    if name == "age":
        ages = text.map(years)
        unread = np.flatnonzero(ages.isna() & given).tolist()
        return ages, [(row, "is no age in years, and left out") for row in unread]
    if name not in OWN and is_numeric_dtype(typed):
        return typed, []
    codes = text.map(clean)
    is_changed = given & (codes != text.map(partial(unicodedata.normalize, "NFC")))
    changed = np.flatnonzero(is_changed).tolist()
    told = [(row, f"has become {codes[row]!r}") for row in changed]
    return codes if name in OWN else codes.where(given), told


def read_clinical(path: Path) -> pd.DataFrame:
    """Return data.csv with readable column names, one row a patient, codes as nullable integers.

    `case_id`, `subject` and `institution` are names: text, also where it is `NA` or `0012`. Prints
    which cells were cleaned, and which ages are no number of years, by row; the header is row 1.
    """
    typed, text = read_table(path)
    columns: dict[str, pd.Series] = {}
    twice, notes = set(), []
    for column in typed.columns.astype(str):
        name = column_name(column)
        if name in columns:
            twice.add(name)
        columns[name], told = read_column(name, typed[column], text[column])
        notes += [f"row {row + 2}, {column}: {text[column][row]!r} {what}" for row, what in told]
    if twice:
        raise Refusal(f"{path}: more than one column for {sorted(twice)}; keep or rename one")
    table = pd.DataFrame(columns)
    table = table[table["case_id"] != ""]
    repeats = table["case_id"].map(same_name).duplicated(keep=False)
    if repeats.any():
        names = sorted(set(table.loc[repeats, "case_id"]))
        raise Refusal(f"{path}: more than one row for {names}; keep one row a patient")
    print_list(f"{path}: {len(notes)} cells changed", notes)
    return table.convert_dtypes()


def rows_of_patients(patient_ids: list[str], clinical: pd.DataFrame) -> pd.DataFrame:
    """Return the patients' rows of data.csv by `patient_id`, empty where there is none.

    A row is found by a folder's name or, where there is none, by that name without date and
    session; spelling does not matter. `case_id` becomes the person: `subject` where it is given,
    else the name without date and session, in the first spelling of all that are the same. `row`
    is the position in data.csv, -1 of none.
    """
    names = [same_name(name) for name in clinical["case_id"]]
    rows = dict(zip(names, clinical.index, strict=True))
    found = [
        rows.get(same_name(name), rows.get(same_name(person(name)), -1)) for name in patient_ids
    ]
    table = clinical.reindex(found).set_index(pd.Index(patient_ids, name="patient_id"))
    persons = pd.Series([person(name) for name in patient_ids], table.index)
    if "subject" in table:
        persons = table["subject"].replace("", pd.NA).fillna(persons)
    spelled = persons.groupby([same_name(name) for name in persons]).transform("first")
    return table.assign(row=found, case_id=spelled)
