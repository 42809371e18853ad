"""Segment tumor in MRI scans with the released model, without PyTorch.

    python src/segment.py flair.nii.gz --out result/
    python src/segment.py --flair f.nii.gz --pre t1.nii.gz --post t1c.nii.gz --out result/
    python src/segment.py patient/ --out result/        # one patient: NIfTI, DICOM or TIFF
    python src/segment.py cohort/ --out results/        # many patients, one folder each
    python src/segment.py cohort/ --out results/ --address local    # several at once, with Ray

It prints which file it uses for which sequence, and writes mask.nii.gz, preview.png, index.html
and result.json. Not a medical device, not for clinical use.
"""

import argparse
import csv
import io
import sys
import time
from collections.abc import Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from application.model import ReleasedModel, cached_model
from application.reading import read_case
from application.results import existing_summary, result_identity, summarize, write_results
from application.segmentation import segment
from pipeline import cluster
from pipeline.exits import exit_with_message
from pipeline.outputs import replacing
from pipeline.refusals import Refusal, print_list, refuse
from scans.cases import Candidate, Case, find_cases
from scans.dicom import find_series, is_dicom, is_volume
from scans.layout import files_below
from scans.sequences import NAMES, Recognized
from scans.series import Axial

MODEL = Path(__file__).resolve().parents[1] / "models/glioma.onnx"
FLAGS = {"flair": "--flair", "pre_contrast": "--pre", "post_contrast": "--post", "t2": "--t2"}
COLUMNS = ("name", "status", "volume_ml", "n_voxels", "n_components", "n_warnings", "message")


class Options(NamedTuple):
    """The options from the command line."""

    scan: Path | None
    named: dict[str, Path]  # scans given by flags such as --flair, by sequence
    out: Path
    model: Path
    threshold: float | None
    probability: bool
    address: str | None = None  # address of a Ray cluster


def probability(text: str) -> float:
    """Return a number above 0 and below 1, for argparse."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError("must be above 0 and below 1")
    return value


def read_options(argv: list[str] | None) -> Options:
    """Return the command line's options; exit with code 2 if it is incomplete."""
    parser = argparse.ArgumentParser(
        prog="segment", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scan", nargs="?", type=Path, help="a NIfTI file, or a folder of scans")
    for sequence, flag in FLAGS.items():
        parser.add_argument(
            flag,
            dest=sequence,
            type=Path,
            metavar="SCAN",
            help=f"the {NAMES[sequence]}: a NIfTI file or the folder of a DICOM series",
        )
    parser.add_argument("--out", type=Path, required=True, help="the folder for the results")
    parser.add_argument(
        "--model", type=Path, default=MODEL, help="the ONNX file (default: the released model)"
    )
    parser.add_argument(
        "--threshold",
        type=probability,
        metavar="P",
        help="a voxel is tumor if its probability is above this (default: the model's threshold)",
    )
    parser.add_argument("--probability", action="store_true", help="also write probability.nii.gz")
    parser.add_argument(
        "--address",
        help="the address of a Ray cluster that shares the patients; local: this machine",
    )
    args = parser.parse_args(argv)
    named = {name: getattr(args, name) for name in FLAGS if getattr(args, name) is not None}
    if args.scan is None and "flair" not in named:
        parser.error("pass a scan, or at least --flair")
    out = args.out.resolve()  # may be `.` or a link to another disk
    scan, model = args.scan, args.model
    if args.address is not None:  # workers may run in another folder
        scan, model = scan and scan.absolute(), model.absolute()
    return Options(scan, named, out, model, args.threshold, args.probability, args.address)


def named_candidate(path: Path, sequence: str) -> Candidate:
    """Return the file, or the only DICOM series of the folder, that was given by a flag."""
    recognized = Recognized(sequence, FLAGS[sequence])
    if not path.is_dir():
        return Candidate(path, recognized)
    files = files_below(path, skip="derivatives").values()
    series = [found for found in find_series(filter(is_dicom, files)) if is_volume(found)]
    if len(series) != 1:
        titles = [found.title for found in series]
        raise Refusal(
            f"{path}: found {len(series)} MR series ({'; '.join(titles) or 'none'}); pass a folder "
            "with exactly one"
        )
    return Candidate(series[0], recognized)


def requested_cases(options: Options) -> list[Case]:
    """Return the cases to segment; scans given by flags replace recognized ones."""
    cases = find_cases(options.scan) if options.scan else [Case("scan")]
    if not options.named:
        return cases
    if len(cases) > 1:
        raise Refusal(
            f"{options.scan}: has {len(cases)} cases; to use --flair and similar flags, pass the "
            "folder of one case"
        )
    [case] = cases
    named = tuple(named_candidate(path, sequence) for sequence, path in options.named.items())
    named_sources = [candidate.source for candidate in named]
    kept = [
        candidate
        for candidate in case.candidates
        if candidate.recognized.sequence not in options.named
        and candidate.source not in named_sources
    ]
    name = case.name if options.scan else options.named["flair"].name.partition(".")[0]
    return [Case(name, (*named, *kept))]


def segment_case(
    case: Case, folder: Path, model: ReleasedModel, options: Options
) -> dict[str, Any]:
    """Segment one case into a folder, unless its result is already there; return the summary."""
    begin = time.perf_counter()
    patient = read_case(case, model)
    threshold = options.threshold or model.description["threshold"]
    identity = result_identity(patient, model, threshold)
    if existing := existing_summary(folder, identity, probability=options.probability):
        print(f"{case.name}: already segmented, see {folder}")
        return existing
    flair = patient.series["flair"]
    n_slices = flair.values.shape[Axial.of(flair.affine).axes[0]]
    with tqdm(desc=case.name, unit="slice", leave=False, disable=None, total=n_slices) as bar:
        segmentation = segment(
            patient.series,
            model,
            numbers=patient.numbers,
            threshold=threshold,
            on_progress=bar.update,
        )
    summary = summarize(case.name, patient, segmentation, model.description["warning"], identity)
    summary["seconds"] = round(time.perf_counter() - begin, 2)
    write_results(folder, patient, segmentation, summary, probability=options.probability)
    print_list(f"{case.name}: warnings", summary["warnings"])
    volume = summary["volume_ml"]
    size = f"{summary['n_voxels']} voxels" if volume is None else f"{volume:.1f} mL"
    print(f"{case.name}: {size} of tumor in {summary['seconds']:.1f} s: {folder / 'index.html'}")
    return summary


def done_row(name: str, summary: dict[str, Any]) -> dict[str, Any]:
    """Return the row of results.csv for a case that was segmented."""
    return {
        "name": name,
        "status": "done",
        "volume_ml": "" if summary["volume_ml"] is None else round(summary["volume_ml"], 3),
        "n_voxels": summary["n_voxels"],
        "n_components": len(summary["components"]),
        "n_warnings": len(summary["warnings"]),
        "message": "",
    }


def existing_rows(table: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of results.csv by name, none if it is not there; check its columns."""
    if not table.exists():
        return {}
    with table.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise Refusal(
                f"{table}: not a results.csv of this program; choose another --out (expected the "
                f"columns {', '.join(COLUMNS)})"
            )
        return {row["name"]: row for row in reader}


def attempt(case: Case, model: ReleasedModel, options: Options) -> dict[str, Any]:
    """Segment one case of a cohort; return its row of results.csv, even if it fails."""
    try:
        return done_row(case.name, segment_case(case, options.out / case.name, model, options))
    except Exception as error:  # one failed case must not stop the others
        is_expected = isinstance(error, Refusal | OSError)
        message = str(error) if is_expected else f"unexpected {type(error).__name__}: {error}"
        return failed_row(case.name, message)


def failed_row(name: str, message: str) -> dict[str, Any]:
    """Print why a case could not be segmented; return its row of results.csv."""
    print(f"{name}: {message}", file=sys.stderr)
    return {"name": name, "status": "failed", "message": message}


def attempt_on_worker(case: Case, options: Options) -> tuple[dict[str, Any], str, str]:
    """Segment one case in a Ray worker; return its row, its output and its error output."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stdout(output), redirect_stderr(errors):
        row = attempt(case, cached_model(options.model), options)
    return row, output.getvalue(), errors.getvalue()


def missing_paths(paths: list[Path]) -> list[Path]:
    """Return the paths that do not exist on this machine."""
    return [path for path in paths if not path.exists()]


def segment_on_cluster(cases: list[Case], options: Options) -> Iterator[dict[str, Any]]:
    """Segment cases on a Ray cluster; yield the row of each case as soon as it is done."""
    with cluster.connect(options.address), cluster.marker_file(options.out) as marker:
        needed = [Path(__file__).resolve(), options.model, marker, *filter(None, [options.scan])]
        problems = [
            f"{machine}: {path} does not exist"
            for machine, paths in cluster.run_on_each_machine(missing_paths, needed)
            for path in paths
        ]
        if problems:
            refuse(
                problems,
                "Every machine needs these files under the same path; put them in a shared folder.",
            )
        resources = cluster.resources_per_item(1, 0)
        ends = cluster.outcomes(attempt_on_worker, cases, options, resources=resources)
        with tqdm(total=len(cases), unit="case", leave=False, disable=None) as bar, closing(ends):
            for case, outcome in ends:
                row, output, errors = outcome.result or (
                    failed_row(case.name, outcome.error),
                    "",
                    "",
                )
                with bar.external_write_mode():
                    print(output, end="", flush=True)
                    print(errors, end="", flush=True, file=sys.stderr)
                bar.update()
                yield row


def segment_cohort(cases: list[Case], model: ReleasedModel, options: Options) -> int:
    """Segment each case into a folder with its name; return the number of failed cases."""
    table = options.out / "results.csv"
    rows = existing_rows(table)
    new_rows = (
        [attempt(case, model, options) for case in cases]
        if options.address is None
        else segment_on_cluster(cases, options)
    )
    rows |= {row["name"]: row for row in new_rows}
    n_failed = len([case for case in cases if rows[case.name]["status"] == "failed"])
    with replacing(table) as [partial], partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows))
    print(f"{len(cases) - n_failed} of {len(cases)} cases done: {table}")
    return n_failed


def main(argv: list[str] | None = None) -> None:
    options = read_options(argv)
    with exit_with_message("segment"):
        model = ReleasedModel(options.model)
        cases = requested_cases(options)
        if len(cases) == 1:
            segment_case(cases[0], options.out, model, options)
        elif segment_cohort(cases, model, options):
            sys.exit(1)


if __name__ == "__main__":
    main()
