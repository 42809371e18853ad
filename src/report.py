"""Write the report, a page with scores, charts and scans, and the model card.

    python src/report.py data/splits.csv data/patients.csv data/predictions \
        models/encoder.safetensors models/unet.safetensors metrics/fetch_encoder.json \
        metrics/train/metrics.json metrics/train/plots/metrics metrics/evaluate.json \
        metrics/evaluate metrics/explore.json metrics/explore report/index.html MODEL_CARD.md

Report and card are filled in from the same values. The report is a single file that loads nothing
else. It shows slices of the data set, so DVC tracks it and Git ignores it. No stage depends on it.
"""

import base64
import sys
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import vl_convert
from markupsafe import Markup
from pydantic import Field

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from learning.params import EncoderParams, PredictParams, TrainParams
from page.charts import all_charts
from page.facts import (
    FIGURES,
    FINDINGS,
    OUTLIER_FINDINGS,
    SHOWN,
    cohort_facts,
    data_license,
    encoder_facts,
    exploration_facts,
    file_facts,
    limits,
    param_facts,
    read_table,
    score_facts,
)
from page.gallery import albums, cards, chosen_for_display, ranked
from page.rendering import script_json, template_environment
from pipeline.command import run
from pipeline.outputs import read_metrics, replacing
from pipeline.params import Section, Seed
from pipeline.refusals import Refusal, quantity, rebuild_hint
from scans.cohort import read_patients
from scans.manifest import read_manifest, splits_of
from scans.params import AcquireParams, SplitParams
from scans.sequences import MAIN
from scoring.params import EvaluateParams

HINT = rebuild_hint("report")
TABLES = ("definitions", "per_patient", "reliability", "risk_coverage", "subgroups")
CURVES = ("train/loss", "train/iou", "val/iou")  # val/iou only if there is a val split


class ReportParams(Section):
    """How many patients the page shows."""

    patients: Annotated[int, Field(ge=3)]


def read_tables(evaluated: Path) -> dict[str, pd.DataFrame]:
    """Return the tables of evaluate; those with a row per split have only the rows of SHOWN."""
    tables = {name: read_table(evaluated / f"{name}.csv", HINT) for name in TABLES}
    by_split = ("definitions", "per_patient", "subgroups")
    return tables | {name: tables[name].query("split == @SHOWN") for name in by_split}


def read_curves(folder: Path, slices: pd.DataFrame) -> "dict[str, pd.Series[float]]":
    """Return DVCLive's CURVES by epoch, without those of a split that has no slices."""
    curves, splits = {}, splits_of(slices)
    for name in (curve for curve in CURVES if curve.partition("/")[0] in splits):
        path, column = folder / f"{name}.tsv", name.rpartition("/")[2]
        table = read_table(path, HINT, "\t")
        if not {"step", column} <= set(table):
            raise Refusal(
                f"{path}: needs the columns `step` and `{column}`; {rebuild_hint('train')}"
            )
        curves[name] = table.set_index("step")[column]
    return curves


def image_uri(path: Path) -> str:
    """Return a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


def render(facts: dict[str, Any], page_facts: dict[str, Any], explored: Path) -> tuple[str, str]:
    """Return the page and the card; `page_facts` has the values that only the page needs."""
    jinja = template_environment()
    counts, name = facts["explored"]["findings"], facts["params"]["acquire"].channels[MAIN]
    main = {"main": facts["main_sequence"], "main_intensity": facts["explored"]["intensity"][name]}
    html = jinja.get_template("report.html").render(
        facts | page_facts,
        findings=FINDINGS | {key: words for key, words in OUTLIER_FINDINGS.items() if counts[key]},
        figures=[
            (
                image_uri(explored / "figures" / f"{name}.png"),
                caption,
                alt.format_map(facts["explored"] | main),
            )
            for name, (caption, alt) in FIGURES.items()
        ],
        vega=Markup(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed")),  # noqa: S704
    )
    dataset = facts["dataset"]
    card = jinja.get_template("MODEL_CARD.md").render(
        facts,
        license=data_license(dataset),
        limits=limits(
            dataset,
            n_institutions=facts["institutions"],
            context=facts["params"]["train"].context,
            calibration=facts["calibration"].value,
            measured=facts["measured"],
        ),
    )
    return html, card


def main(
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
    acquire: AcquireParams,
    split: SplitParams,
    encoder: EncoderParams,
    train: TrainParams,
    predict: PredictParams,
    evaluate: EvaluateParams,
    report: ReportParams,
) -> None:
    params: dict[str, Section | int] = {"seed": seed, "acquire": acquire, "split": split}
    params |= {"encoder": encoder, "train": train, "predict": predict, "evaluate": evaluate}
    manifest = read_manifest(splits, "split", "slice_number", "image", "mask")
    cohort = read_patients(patients)
    tables, kept = read_tables(evaluated), read_metrics(trained, HINT)["kept"]
    facts = {
        "dataset": acquire.dataset,
        **exploration_facts(read_metrics(exploration, HINT), acquire.channels),
        "kept": kept,
        "model": file_facts(model_file),
        "encoder_training": "frozen" if encoder.frozen else "trained",
        "encoder_file": encoder_facts(encoder_file, read_metrics(fetched, HINT)),
        **param_facts(params),
        **cohort_facts(manifest, cohort, explored),
        **score_facts(read_metrics(metrics, HINT), tables),
    }
    chosen = chosen_for_display(ranked(tables["per_patient"]), report.patients)
    slices = albums(
        chosen,
        manifest,
        predictions,
        split=SHOWN,
        threshold=facts["threshold"] if evaluate.threshold == "val" else evaluate.threshold,
        share=evaluate.component_share,
    )
    charts = all_charts(read_curves(curves, manifest), kept["epoch"], tables, cohort, SHOWN)
    page_facts = {
        "patients": cards(chosen, cohort, slices, acquire.channels),
        "n_tested": len(tables["per_patient"]),
        **{"slices": script_json(slices), "charts": script_json(charts)},
    }
    with replacing(page, card) as partials:
        for text, partial in zip(render(facts, page_facts, explored), partials, strict=True):
            partial.write_text(text, encoding="utf-8")
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, {quantity(len(chosen), 'patient')}; {card}")


if __name__ == "__main__":
    run(main)
