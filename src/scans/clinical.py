"""Read data.csv, which has one row per patient; clean it and join it to the patients.

People typed its text, and its codes end up in tables, web pages and the model card. So characters
that could act as markup or start a formula there are replaced on reading.
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

from pipeline.refusals import Refusal, print_list, quantity
from scans.names import name_key, person

# Readable names of the columns of data.csv. Values stay codes, because the file has no codebook;
# ages are in years.
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
TEXT_COLUMNS = ("subject", "institution")  # optional; they override what a folder's name says
# Other names, in lower case, of the columns by which scores are grouped.
ALIASES = {
    **{name: name for name in (*TEXT_COLUMNS, "age", "gender", "grade")},
    **{"sex": "gender", "who_grade": "grade", "site": "institution", "center": "institution"},
}

UNSAFE = re.compile(r"[^\w .,;%/()+-]")  # characters used by HTML, Markdown or formulas
FORMULA = re.compile(r"[-+](?![\d.,]+$)")  # a sign starts a formula unless a number follows
AGE = re.compile(r"(\d{1,3}(?:[.,]\d+)?) *(?:y|yo|yr|yrs|years?)?\.?", re.IGNORECASE)
MAX_AGE = 120  # years


def clean_code(code: str) -> str:
    """Return a code with `_` for each unsafe character, and before a sign that starts a formula."""
    text = UNSAFE.sub("_", unicodedata.normalize("NFC", code))
    return f"_{text}" if FORMULA.match(text) else text


def parse_age(age: str) -> float:
    """Return an age in years from `30`, `30.5`, `30,5`, `30 y` or `030Y`; NaN for other text."""
    match = AGE.fullmatch(age)
    value = float(match[1].replace(",", ".")) if match else float("nan")
    return value if value <= MAX_AGE else float("nan")


def read_table(path: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return data.csv twice, with the types that pandas infers and as text.

    Raises an error if it is not a valid table with a column `Patient`.
    """

    def read(**text: Any) -> pd.DataFrame:
        table: pd.DataFrame = pd.read_csv(path, index_col=False, skip_blank_lines=False, **text)
        return table

    try:
        # Without this, pandas shifts or truncates ragged rows.
        with warnings.catch_warnings(action="error"):
            typed, text = read(), read(dtype=str, keep_default_na=False)
    except (ValueError, pd.errors.ParserWarning) as error:
        reason = " ".join(str(error).split())
        raise Refusal(
            f"{path}: not a valid CSV table ({reason}). Correct it in the source data set, then "
            "run `dvc repro -f acquire`."
        ) from None
    if "Patient" not in typed:
        raise Refusal(
            f"{path}: no column `Patient`, only {list(typed)}. Add it; it is the only "
            "column that is required."
        )
    return typed, text.apply(lambda column: column.str.strip())


def column_name(column: str) -> str:
    """Return the readable name of a column of data.csv."""
    known = ALIASES.get(column.strip().lower()) or CLINICAL_COLUMNS.get(column)
    return known or clean_code(column)


def read_column(
    name: str, typed: pd.Series, text: pd.Series
) -> tuple[pd.Series, list[tuple[int, str]]]:
    """Return a column's values, and for each changed row its position and a note."""
    given = typed.notna()
    if name == "case_id":
        return text, []
    if name == "age":
        ages = text.map(parse_age)
        unparsed = np.flatnonzero(ages.isna() & given).tolist()
        return ages, [(row, "is not an age in years, left empty") for row in unparsed]
    if name not in TEXT_COLUMNS and is_numeric_dtype(typed):
        return typed, []
    codes = text.map(clean_code)
    is_changed = given & (codes != text.map(partial(unicodedata.normalize, "NFC")))
    changed = np.flatnonzero(is_changed).tolist()
    notes = [(row, f"changed to {codes[row]!r}") for row in changed]
    return codes if name in TEXT_COLUMNS else codes.where(given), notes


def read_clinical(path: Path) -> pd.DataFrame:
    """Return data.csv with readable column names, one row per patient, codes as nullable integers.

    `case_id`, `subject` and `institution` stay text, even if it is `NA` or `0012`. Prints the row
    and column of each cell that was cleaned and of each age that is not valid; the header is row 1.
    """
    typed, text = read_table(path)
    columns: dict[str, pd.Series] = {}
    duplicates, notes = set(), []
    for column in typed.columns.astype(str):
        name = column_name(column)
        if name in columns:
            duplicates.add(name)
        columns[name], changes = read_column(name, typed[column], text[column])
        notes += [f"row {row + 2}, {column}: {text[column][row]!r} {note}" for row, note in changes]
    if duplicates:
        raise Refusal(
            f"{path}: more than one column for {sorted(duplicates)}. Remove or rename all but one."
        )
    table = pd.DataFrame(columns)
    table = table[table["case_id"] != ""]
    repeats = table["case_id"].map(name_key).duplicated(keep=False)
    if repeats.any():
        names = sorted(set(table.loc[repeats, "case_id"]))
        raise Refusal(f"{path}: more than one row for {names}. Keep one row per patient.")
    print_list(f"{path}: {quantity(len(notes), 'cell')} changed", notes)
    return table.convert_dtypes()


def rows_of_patients(patient_ids: list[str], clinical: pd.DataFrame) -> pd.DataFrame:
    """Return the patients' rows of data.csv by `patient_id`; a patient without a row gets NA.

    A row is matched by the folder's name or, if that fails, by the name without date and session.
    Differences in spelling are ignored, as in `name_key`. `case_id` becomes the person: `subject`
    if given, else the name without date and session. If a person's name is spelled in several
    ways, the first one is used. `row` is the position in data.csv, -1 if there is none.
    """
    names = [name_key(name) for name in clinical["case_id"]]
    rows = dict(zip(names, clinical.index, strict=True))
    found = [rows.get(name_key(name), rows.get(name_key(person(name)), -1)) for name in patient_ids]
    table = clinical.reindex(found).set_index(pd.Index(patient_ids, name="patient_id"))
    persons = pd.Series([person(name) for name in patient_ids], table.index)
    if "subject" in table:
        persons = table["subject"].replace("", pd.NA).fillna(persons)
    spelled = persons.groupby([name_key(name) for name in persons]).transform("first")
    return table.assign(row=found, case_id=spelled)
