"""Create data.csv from the tables that come with a NIfTI data set.

Such a table is participants.tsv of BIDS, the name mapping of BraTS, or any other CSV or TSV file
with a column that names patients or examinations. There may be none.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from pipeline.refusals import Refusal, print_list
from scans.clinical import column_name
from scans.names import name_key, person

SEPARATORS = {".csv": ",", ".tsv": "\t"}
STANDARD_TABLES = ("data.csv", "participants.tsv")  # an error if damaged; others are skipped
EMPTY = ("n/a", "NA", "nan")
RESERVED = ("patient", "case_id", "row")  # column names that data.csv or its readers use
Rows = list[dict[str, str]]


def person_of(layout: str, exam: str) -> str:
    """Return the name of the person examined; in BIDS, `sub-` and the label that follows."""
    return exam.partition("_")[0] if layout == "bids" else person(exam)


def read_rows(path: Path) -> Rows:
    """Return the rows of a table as text, by column."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter=SEPARATORS[path.suffix.lower()], restval="")
        rows = [{key: value for key, value in row.items() if key} for row in reader]
    return [
        {key: "" if value in EMPTY else value.strip() for key, value in row.items()} for row in rows
    ]


def key_column(rows: Rows, names: set[str]) -> str | None:
    """Return the column that contains the most of these names, None if no column contains any."""
    counts = {
        column: len({name_key(row[column]) for row in rows} & names)
        for column in (rows[0] if rows else ())
    }
    best = max(counts, key=lambda column: counts[column], default=None)
    return best if best is not None and counts[best] else None


def read_patient_table(
    place: str, path: Path, names: set[str]
) -> tuple[str, dict[str, dict[str, str]]]:
    """Return a note on how a table is used, and its rows by patient's or examination's name.

    The rows are empty if the table is not used. Raises an error if one of STANDARD_TABLES cannot be
    read, or has several rows for one name.
    """
    try:
        rows = read_rows(path)
    except (OSError, ValueError, csv.Error) as error:
        if path.name in STANDARD_TABLES:
            raise Refusal(
                f"{path}: cannot be read as a table ({error}). Correct or remove it."
            ) from None
        return f"{place}: not used because it cannot be read ({error})", {}
    key = key_column(rows, names)
    if key is None:
        return f"{place}: not used because it names no patient", {}
    named = [row for row in rows if row[key]]
    found = {name_key(row[key]): row for row in named}
    if len(found) < len(named):
        repeated = sorted({row[key] for row in named if found[name_key(row[key])] is not row})
        if path.name in STANDARD_TABLES:
            raise Refusal(f"{path}: more than one row for {repeated}. Keep one row for each.")
        return f"{place}: not used because it has several rows for {repeated[:3]}", {}
    facts = {
        name: {column: value for column, value in row.items() if column != key}
        for name, row in found.items()
    }
    return f"{place}, matched by its column {key}", facts


def clinical_rows(layout: str, exams: Sequence[str], files: Mapping[str, Path]) -> Rows:
    """Return the rows of data.csv, one for each examination; print which tables were used."""
    persons = {exam: person_of(layout, exam) for exam in exams}
    # A table may name the examination or the person, often without `sub-`.
    aliases = {exam: (exam, name, name.removeprefix("sub-")) for exam, name in persons.items()}
    names = {name_key(name) for spellings in aliases.values() for name in spellings}
    found: dict[str, dict[str, str]] = {exam: {"Patient": exam} for exam in exams}
    used = []
    for place, path in files.items():
        if path.suffix.lower() in SEPARATORS and "derivatives" not in PurePosixPath(place).parts:
            note, facts = read_patient_table(place, path, names)
            used.append(note)
            for exam, combined in found.items():
                keys = (name_key(name) for name in aliases[exam])
                row = next((facts[key] for key in keys if key in facts), {})
                for column, value in row.items():
                    name = column_name(column)  # so that Age and age are one column
                    name = f"other_{name}" if name.lower() in RESERVED else name
                    combined[name] = combined.get(name) or value
    for exam, combined in found.items():
        combined["subject"] = combined.get("subject") or persons[exam]
    print_list("tables of patients", used or ["none, so only the names of patients are known"])
    return list(found.values())


def write_rows(path: Path, rows: Rows) -> None:
    """Write data.csv."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
