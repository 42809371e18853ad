"""data.csv made from the tables that come with a data set of NIfTI files, if any do.

These are participants.tsv of BIDS, the name mapping of BraTS, or any other table in CSV or TSV with
a column that names patients or examinations.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from pipeline.refusals import Refusal, print_list
from scans.clinical import column_name
from scans.names import person, same_name

SEPARATORS = {".csv": ",", ".tsv": "\t"}
EXPECTED = ("data.csv", "participants.tsv")  # refused if damaged; other tables are left out
EMPTY = ("n/a", "NA", "nan")
TAKEN = ("patient", "case_id", "row")  # names that data.csv and its readers have for their own
Rows = list[dict[str, str]]


def person_of(layout: str, exam: str) -> str:
    """Return whose examination it is; in BIDS that is the label after `sub-`, whatever it is."""
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
    """Return the column with the most of these names, None if none has one."""
    counts = {
        column: len({same_name(row[column]) for row in rows} & names)
        for column in (rows[0] if rows else ())
    }
    best = max(counts, key=lambda column: counts[column], default=None)
    return best if best is not None and counts[best] else None


def by_patient(place: str, path: Path, names: set[str]) -> tuple[str, dict[str, dict[str, str]]]:
    """Return how a table is used, and its rows by the name of a patient or an examination.

    Refuses a table of patients that cannot be read, or has several rows for one.
    """
    try:
        rows = read_rows(path)
    except (OSError, ValueError, csv.Error) as error:
        if path.name in EXPECTED:
            raise Refusal(f"{path}: cannot be read as a table ({error})") from None
        return f"{place}: not used, it cannot be read ({error})", {}
    key = key_column(rows, names)
    if key is None:
        return f"{place}: not used, it names no patient", {}
    named = [row for row in rows if row[key]]
    found = {same_name(row[key]): row for row in named}
    if len(found) < len(named):
        repeated = sorted({row[key] for row in named if found[same_name(row[key])] is not row})
        if path.name in EXPECTED:
            raise Refusal(f"{path}: more than one row for {repeated}; keep one each")
        return f"{place}: not used, it has several rows for {repeated[:3]}", {}
    facts = {
        name: {column: value for column, value in row.items() if column != key}
        for name, row in found.items()
    }
    return f"{place}, by {key}", facts


def clinical_rows(layout: str, exams: Sequence[str], files: Mapping[str, Path]) -> Rows:
    """Return the rows of data.csv, one for each examination; print what they are from."""
    persons = {exam: person_of(layout, exam) for exam in exams}
    # By the examination, else by the person, whose `sub-` is often left out.
    called = {exam: (exam, own, own.removeprefix("sub-")) for exam, own in persons.items()}
    names = {same_name(name) for each in called.values() for name in each}
    found: dict[str, dict[str, str]] = {exam: {"Patient": exam} for exam in exams}
    used = []
    for place, path in files.items():
        if path.suffix.lower() in SEPARATORS and "derivatives" not in PurePosixPath(place).parts:
            note, facts = by_patient(place, path, names)
            used.append(note)
            for exam, own in found.items():
                found_by = (same_name(name) for name in called[exam])
                row = next((facts[name] for name in found_by if name in facts), {})
                for column, value in row.items():
                    name = column_name(column)  # so that Age and age are one column
                    name = f"other_{name}" if name.lower() in TAKEN else name
                    own[name] = own.get(name) or value
    for exam, own in found.items():
        own["subject"] = own.get("subject") or persons[exam]
    print_list("tables of patients", used or ["none: patients are known by their names alone"])
    return list(found.values())


def write_rows(path: Path, rows: Rows) -> None:
    """Write data.csv."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
