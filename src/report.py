"""Write what a person opens: a page of figures, charts and scans, and the model's card.

    python src/report.py src/page/templates data/slices/images data/slices/masks data/splits.csv \
        data/patients.csv data/predictions models/encoder.safetensors models/unet.safetensors \
        metrics/fetch_encoder.json metrics/train/metrics.json metrics/train/plots/metrics \
        metrics/evaluate.json metrics/evaluate metrics/explore.json metrics/explore \
        report/index.html MODEL_CARD.md

Page and card are filled in from the same values. The page is one file that asks for nothing else;
it shows slices of the data set, so it is kept by DVC and never in Git. A leaf of the graph.
"""

import base64
import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jinja2
import pandas as pd
import vl_convert
from markupsafe import Markup
from pydantic import Field

from page.charts import (
    curve_chart,
    patient_chart,
    reliability_chart,
    risk_chart,
    subgroup_chart,
)
from page.gallery import album, albums, cards, chosen_for_display, ranked
from page.glossary import DEFINITIONS, HEADLINE, SCORES, tell, told
from pipeline.command import Refusal, Seed, run
from pipeline.dotted import leaves
from pipeline.outputs import file_sha256, read_metrics, replacing
from scans.cohort import read_patients
from scans.manifest import SPLITS, read_manifest

WAY_OUT = "`dvc repro` writes it anew."
SHOWN = "test"  # the split whose patients and charts are shown
TABULATED = ("test", "val", "train")  # in the order of a table's columns
ARTIFACT = "unet"  # the model's name in dvc.yaml

TABLES = (
    "definitions",
    "per_patient",
    "per_slice",
    "reliability",
    "risk_coverage",
    "subgroups",
)
COUNTED = ("slices", "patients", "batches")
CURVES = ("train/loss", "train/iou", "val/iou")

# The figures of explore, in order: a caption, and what of them is told to who cannot see them.
FIGURES = {
    "location": (
        "Where tumors lie in the slice plane: share of all tumor pixels in each cell",
        "Heat map; {tumor_share_image_left:.0%} of tumor pixels lie in the left half of the image",
    ),
    "position": (
        "Where tumors lie along the volume: share of slices that are abnormal, and of all tumor "
        "pixels, at each position",
        "Bars and a line, from the first slice to the last; {abnormal_fraction:.1%} of all slices "
        "are abnormal",
    ),
    "tumor_area": (
        "How large tumors are, by abnormal slice and by patient",
        "Two histograms; the median is {tumor_area[median]:.1%} of an abnormal slice, and "
        "{tumor_share_of_patient[median]:.1%} of a patient's pixels",
    ),
    "intensity": (
        "How bright tumor and healthy tissue are in each sequence",
        "Three histograms; in FLAIR the mean is {intensity[flair][tumor_mean]:.0f} in tumor and "
        "{intensity[flair][healthy_mean]:.0f} in healthy tissue, of 255",
    ),
    "hue": (
        "Hue of tumor and healthy tissue, of all patients and by institution",
        "Histograms, of {hue[n_patients]} patients with all sequences",
    ),
}
FINDINGS = {
    "no_tumor": "patients without tumor",
    "mask_touches_border": "masks that touch the border of the slice",
    "speck": "specks beside a larger component",
    "near_duplicate": "near-duplicate slices of two patients",
}


def read_table(path: Path, separator: str = ",") -> pd.DataFrame:
    """Return a table of metrics; names stay text, empty fields are NaN."""
    text = dict.fromkeys(("patient_id", "slice_id", "institution", "attribute", "group"), str)
    try:
        return pd.read_csv(path, sep=separator, dtype=text, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise Refusal(f"{path}: cannot be read ({error}). {WAY_OUT}") from None


def read_curve(curves: Path, name: str) -> "pd.Series[float]":
    """Return a curve of DVCLive by epoch; `name` is such as train/loss."""
    column = name.rpartition("/")[2]
    path = curves / f"{name}.tsv"
    table = read_table(path, "\t")
    if not {"step", column} <= set(table):
        raise Refusal(f"{path}: no curve by `step` of `{column}`; `dvc repro --force train`")
    return table.set_index("step")[column]


def file_facts(path: Path) -> dict[str, Any]:
    """Return a file's place, size in MB and SHA-256."""
    return {
        "path": path.as_posix(),
        "megabytes": f"{path.stat().st_size / 1e6:.1f}",
        "sha256": file_sha256(path),
    }


def encoder_facts(path: Path, fetched: dict[str, Any]) -> dict[str, Any]:
    """Return what is told of the encoder's file; refuse another file than was fetched."""
    found = file_facts(path)
    if found["sha256"] != fetched.get("sha256"):
        raise Refusal(f"{path}: not the file that was fetched; `dvc repro fetch_encoder`")
    return fetched | found


def encoder_training(params: dict[str, Any], best_epoch: int) -> str:
    """Return whether the encoder had learned when the epoch that is kept had ended."""
    train = params["train"]
    n_thawed = best_epoch - (train["epochs"] - train["thaw_epochs"])
    if not params["encoder"]["frozen"]:
        return "trained too"
    return f"frozen, then trained too for {n_thawed} epochs" if n_thawed > 0 else "frozen"


def param_rows(params: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the dotted name and the value of each param, as YAML writes it."""
    return [
        (name, str(value).lower() if isinstance(value, bool) else value)
        for name, value in leaves(params)
    ]


def split_rows(manifest: pd.DataFrame) -> list[dict[str, Any]]:
    """Return how many patients, slices and abnormal slices each split has."""
    return [
        {
            "name": split,
            "n_patients": rows["patient_id"].nunique(),
            "n_slices": len(rows),
            "n_abnormal": int(rows["abnormal"].sum()),
        }
        for split in SPLITS
        for rows in [manifest[manifest["split"] == split]]
    ]


def definition_rows(definitions: pd.DataFrame) -> dict[str, Any]:
    """Return the predictors and, for each definition, what they score, as printed; then their n."""
    rows = [
        (label, [told(value) for value in definitions[name]]) for name, label in DEFINITIONS.items()
    ]
    rows += [(f"n, {each}", [f"{n:,}" for n in definitions[f"n_{each}"]]) for each in COUNTED]
    return {"predictors": definitions["predictor"].tolist(), "rows": rows}


def subgroup_rows(subgroups: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the groups of patients with their scores, as printed."""
    rows = []
    for row in subgroups.to_dict("records"):
        low, high = (row[f"dice_patient_mean_{end}"] for end in ("low", "high"))
        rows.append(
            {
                "attribute": row["attribute"],
                "value": row["value"],
                "n": row["n_patients_dice"],
                "mean": told(row["dice_patient_mean"]),
                "interval": "" if pd.isna(low) else f"{told(low)} to {told(high)}",
                "median": told(row["dice_patient_median"]),
                "iou": told(row["iou"]),
            }
        )
    return rows


def score_facts(
    scores: dict[str, dict[str, Any]], tables: dict[str, pd.DataFrame]
) -> dict[str, Any]:
    """Return what page and card tell of the scores; rows of `tables` are of SHOWN alone."""
    rows = [(score, [tell(score, scores[split]) for split in TABULATED]) for score in SCORES]
    first = {score.key: (score, values[TABULATED.index(SHOWN)]) for score, values in rows}
    return {
        "tabulated": TABULATED,
        "score_rows": rows,
        "headline": [first[key] for key in HEADLINE],
        "calibration": first["ece_above_first_bin"][1],
        "threshold": scores[SHOWN]["threshold"],
        "subgroups": subgroup_rows(tables["subgroups"]),
        "definitions": definition_rows(tables["definitions"]),
    }


def charts(
    curves: dict[str, "pd.Series[float]"],
    best_epoch: int,
    tables: dict[str, pd.DataFrame],
    cohort: pd.DataFrame,
) -> dict[str, dict[str, Any]]:
    """Return the page's charts by name."""
    kept = f"epoch {best_epoch}, the best on val"
    ious = {"train": curves["train/iou"], "val": curves["val/iou"]}
    patients = tables["per_patient"].merge(cohort[["patient_id", "institution"]], on="patient_id")
    patients["tumor"] = patients["tp"] + patients["fn"]
    return {
        "iou": curve_chart(ious, "IoU", best_epoch, kept),
        "loss": curve_chart({"train": curves["train/loss"]}, "loss", best_epoch, kept),
        "patients": patient_chart(patients),
        "subgroups": subgroup_chart(tables["subgroups"]),
        "reliability": reliability_chart(tables["reliability"], SHOWN),
        "risk": risk_chart(tables["risk_coverage"], SHOWN),
    }


def environment(templates: Path) -> jinja2.Environment:
    """Return what fills in the templates: HTML is escaped, and a name that is missing refused."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["cell"] = cell
    return found


def cell(value: Any) -> str:
    """Return a value as a cell of a table in Markdown, whatever it is made of."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def script_json(value: Any) -> Markup:
    """Return a value as JSON that cannot end the script element that it stands in."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))  # noqa: S704


def picture(path: Path) -> str:
    """Return a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def main(
    templates: Path,
    images: Path,
    masks: Path,
    splits: Path,
    patients: Path,
    predictions: Path,
    encoder_file: Path,
    model_file: Path,
    fetched: Path,
    trained: Path,
    curves: Path,
    metrics: Path,
    evaluated: Path,
    exploration: Path,
    explored: Path,
    page: Path,
    card: Path,
    *,
    seed: Seed,
    acquire: dict[str, Any],
    split: dict[str, Any],
    encoder: dict[str, Any],
    train: dict[str, Any],
    predict: dict[str, Any],
    evaluate: dict[str, Any],
    report_patients: Annotated[int, Field(ge=3)],
) -> None:
    manifest, cohort = read_manifest(splits, "split"), read_patients(patients)
    scores, training, found = (
        read_metrics(path, WAY_OUT) for path in (metrics, trained, exploration)
    )
    tables = {name: read_table(evaluated / f"{name}.csv") for name in TABLES}
    tables |= {
        name: tables[name].query("split == @SHOWN")
        for name in ("definitions", "per_patient", "subgroups")
    }
    chosen = scores[SHOWN]["threshold"]
    shown = chosen_for_display(ranked(tables["per_patient"]), report_patients)
    take = partial(
        album,
        images=images,
        masks=masks,
        predictions=predictions,
        split=SHOWN,
        threshold=chosen if evaluate["threshold"] == "val" else evaluate["threshold"],
        largest=evaluate["largest_component"],
    )
    slices = albums(shown, manifest, tables["per_slice"], take)
    params = {"seed": seed, "acquire": acquire, "split": split, "encoder": encoder, "train": train}
    params |= {"predict": predict, "evaluate": evaluate}
    facts = {
        "dataset": acquire["dataset"],
        "params": params,
        "param_rows": param_rows(params),
        "n_patients": len(cohort),
        "institutions": cohort["institution"].nunique(),
        "splits": split_rows(manifest),
        "explored": found,
        "findings": FINDINGS,
        "best": training["best"],
        "artifact": ARTIFACT,
        "model": file_facts(model_file),
        "encoder_training": encoder_training(params, training["best"]["epoch"]),
        "encoder_file": encoder_facts(encoder_file, read_metrics(fetched, WAY_OUT)),
        **score_facts(scores, tables),
    }
    specs = charts(
        {name: read_curve(curves, name) for name in CURVES},
        training["best"]["epoch"],
        tables,
        cohort,
    )
    jinja = environment(templates)
    html = jinja.get_template("report.html").render(
        facts,
        patients=cards(shown, cohort, slices),
        n_tested=len(tables["per_patient"]),
        figures=[
            (picture(explored / "figures" / f"{name}.png"), caption, alt.format_map(found))
            for name, (caption, alt) in FIGURES.items()
        ],
        slices=script_json(slices),
        charts=script_json(specs),
        vega=Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed")),  # noqa: S704
    )
    with replacing(page, card) as [page_partial, card_partial]:
        page_partial.write_text(html, encoding="utf-8")
        card_partial.write_text(jinja.get_template("MODEL_CARD.md").render(facts), encoding="utf-8")
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, {len(shown)} patients; {card}")


if __name__ == "__main__":
    run(
        main,
        "seed",
        "acquire",
        "split",
        "encoder",
        "train",
        "predict",
        "evaluate",
        "report.patients",
    )
