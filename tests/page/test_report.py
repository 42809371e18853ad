"""The report and the model card of a phantom: their values, their bytes and their errors."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

import report
from helpers import ROOT, RunStage
from page import gallery
from page.facts import TABULATED, subgroup_rows
from page.rendering import cell
from page.wording import DEFINITIONS, SCORES, format_score, formatted
from pipeline.outputs import file_sha256
from report_inputs import CURVES, PARAMS, Inputs, Written
from scans.manifest import read_manifest


def run_report(run_stage: RunStage, inputs: Inputs, folder: Path, **overrides: Any) -> Written:
    written = Written(folder / "report/index.html", folder / "MODEL_CARD.md")
    outcome = run_stage(report.main, [*inputs, *written], **{**PARAMS, **overrides})
    assert outcome.code == 0, outcome.error
    return written


class Scores(HTMLParser):
    """The scores on a page: those of the headline by id, the others by the key of their row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.headline: dict[str, str] = {}
        self.rows: dict[str, list[str]] = {}
        self.stored: dict[str, list[float | None]] = {}
        self.key, self.is_headline, self.is_open = "", False, False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        if tag == "tr":
            self.key = found.get("data-key") or ""
        if tag == "data":
            name = found.get("id") or ""
            self.is_open, self.is_headline = True, name.startswith("headline-")
            value = float(found["value"]) if found["value"] else None
            if self.is_headline:
                self.key = name.removeprefix("headline-")
            else:
                self.stored.setdefault(self.key, []).append(value)

    def handle_endtag(self, tag: str) -> None:
        self.is_open = self.is_open and tag != "data"

    def handle_data(self, text: str) -> None:
        if self.is_open and self.is_headline:
            self.headline[self.key] = text
        elif self.is_open:
            self.rows.setdefault(self.key, []).append(text)


def test_report_and_card_show_the_scores_of_evaluate(inputs: Inputs, written: Written) -> None:
    scores = json.loads(inputs.metrics.read_text())
    found = Scores(written.page.read_text())
    assert found.headline == {
        name: f"{scores['test'][name]:.3f}"
        for name in ("dice_patient_mean", "dice_patient_median", "iou", "detection_auroc")
    }
    in_pixels = [score for score in SCORES if score.key in scores["test"]]
    assert {score.key for score in SCORES} - {score.key for score in in_pixels} == {
        *("hd95_mm_mean", "surface_distance_mm_mean"),
        *("volume_ml_bias", "volume_ml_limit_lower", "volume_ml_limit_upper"),
    }
    assert set(found.rows) == {score.key for score in in_pixels}
    card = written.card.read_text()
    lines = card.splitlines()
    for score in in_pixels:
        shown = [format_score(score, scores[split]) for split in TABULATED]
        assert found.rows[score.key] == [each.text for each in shown]
        assert found.stored[score.key] == [scores[split][score.key] for split in TABULATED]
        [row] = [
            each for each in lines if re.match(rf"\| {re.escape(score.label)} \| .*, n = ", each)
        ]
        cells = [
            f"{each.text} ({each.interval}), n = {each.n}"
            if each.interval
            else f"{each.text}, n = {each.n}"
            for each in shown
        ]
        assert row == f"| {score.label} | {' | '.join(cells)} |"


def test_a_score_is_formatted_with_its_interval_and_n() -> None:
    values: dict[str, Any] = {
        "iou": 0.5, "iou_low": 0.25, "iou_high": 0.75, "hd95_slice_mean": 1234.56,
        "n_slices": 3000, "n_slices_abnormal": 1000, "n_slices_hd95": 900,
        "n_patients_dice": 7, "n_patients": 8,
        "fp_area_slice_healthy": 3.04, "dice_patient_mean": None,
        "dice_patient_mean_low": None, "dice_patient_mean_high": None,
    }  # fmt: skip
    by_key = {score.key: score for score in SCORES}
    of = "slices of 8 patients"
    assert format_score(by_key["iou"], values) == (0.5, "0.500", "0.250 to 0.750", f"3,000 {of}")
    assert format_score(by_key["hd95_slice_mean"], values) == (1234.56, "1,234.6", "", f"900 {of}")
    assert format_score(by_key["fp_area_slice_healthy"], values) == (3.04, "3.0", "", f"2,000 {of}")
    assert format_score(by_key["dice_patient_mean"], values) == (
        None,
        "undefined",
        "",
        "7 patients",
    )


def test_no_score_of_evaluate_is_left_out(inputs: Inputs) -> None:
    scores = json.loads(inputs.metrics.read_text())["test"]
    named = {score.key for score in SCORES}
    for key in scores:
        bound = re.sub("_(low|high)$", "", key) in named
        counted = re.match(r"n_|threshold$|detection_(tp|fp|fn|tn)$", key)
        assert key in named or bound or counted, key


def test_the_card_gives_the_files_with_their_hashes_and_the_declared_artifacts(
    inputs: Inputs, written: Written
) -> None:
    card = written.card.read_text()
    assert f"| SHA-256 | `{file_sha256(inputs.unet)}` |" in card
    assert f"| SHA-256 of the encoder | `{file_sha256(inputs.encoder)}` |" in card
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    assert "artifact `unet`" in card
    paths = {name: artifact["path"] for name, artifact in graph["artifacts"].items()}
    assert paths["unet"] in graph["stages"]["report"]["cmd"].split()
    assert paths["unet"] in graph["stages"]["train"]["outs"]
    assert f"`{paths['glioma']}`" in card
    assert {paths["glioma"]} <= {path for out in graph["stages"]["export"]["outs"] for path in out}
    assert "**Not a medical device, not for clinical use.**" in card
    assert "synthetic phantom" in card
    assert "CC BY-NC-SA" not in card
    assert "| `train.learning_rate` | 0.003 |" in card
    assert "| `encoder.frozen` | true |" in card
    assert re.search(r"\b50 epochs\b.*\bepoch 2\b.*\b0\.500\b.*\bmoving average\b", card)


def test_subgroups_definitions_and_splits_equal_the_tables(
    inputs: Inputs, written: Written
) -> None:
    page, card = written.page.read_text(), written.card.read_text()
    groups = pd.read_csv(inputs.evaluated / "subgroups.csv").query("split == 'test'")
    assert len(groups) > 5
    for row in groups.to_dict("records"):
        name, n = f"{row['attribute']}: {row['value']}", row["n_patients_dice"]
        mean, median, iou = (
            f"{row[key]:.3f}" for key in ("dice_patient_mean", "dice_patient_median", "iou")
        )
        assert f"| {name} | {n} | {mean} | {median} | {iou} |" in card
        cells = "".join(f"<td>{each}</td>" for each in (n, mean, median, iou))
        assert f'<tr><th scope="row">{name}</th>{cells}</tr>' in page
    table = pd.read_csv(inputs.evaluated / "definitions.csv").query("split == 'test'")
    for name, label in DEFINITIONS.items():
        cells = "".join(f"<td>{formatted(value)}</td>" for value in table[name])
        assert f'<tr><th scope="row">{label}</th>{cells}</tr>' in page
    cells = "".join(f"<td>{n}</td>" for n in table["n_patients"])
    assert f'<tr><th scope="row">n, patients</th>{cells}</tr>' in page
    manifest = read_manifest(inputs.splits)
    for split, rows in manifest.groupby("split"):
        numbers = rows["patient_id"].nunique(), len(rows), rows["abnormal"].sum()
        assert f"| {split} | {' | '.join(map(str, numbers))} |" in card
        cells = "".join(f"<td>{n}</td>" for n in numbers)
        assert f'<tr><th scope="row">{split}</th>{cells}</tr>' in page


def test_the_interval_of_a_group_is_formatted_low_to_high() -> None:
    row = {"attribute": "a|b", "value": "<c>", "n_patients_dice": 12, "dice_patient_mean": 0.5}
    row |= {"dice_patient_mean_low": 0.4, "dice_patient_mean_high": 0.625}
    row |= {"dice_patient_median": 0.55, "iou": np.nan}
    [formatted_row] = subgroup_rows(pd.DataFrame([row]))
    assert (formatted_row["mean"], formatted_row["interval"]) == ("0.500", "0.400 to 0.625")
    assert (formatted_row["median"], formatted_row["iou"], formatted_row["n"]) == (
        "0.550",
        "undefined",
        12,
    )
    assert cell("a|b\n<c>") == "a\\|b &lt;c>"


def test_the_charts_plot_the_tables(inputs: Inputs, written: Written) -> None:
    page = written.page.read_text()
    [text] = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page)
    charts = json.loads(text)

    def drawn(name: str, layer: int | None = None) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Return the data of a chart or of one of its layers, and the field of each channel."""
        chart = charts[name]
        marks = chart if layer is None else chart["layer"][layer]
        data = marks.get("data") or chart["data"]
        fields = {
            channel: each.get("field")
            for channel, each in marks["encoding"].items()
            if isinstance(each, dict)
        }
        return pd.DataFrame(chart["datasets"][data["name"]]), fields

    table, fields = drawn("iou", 0)
    assert (fields["x"], fields["y"], fields["color"]) == ("epoch", "value", "curve")
    for split in ("train", "val"):
        assert table[table["curve"] == split]["value"].tolist() == CURVES[f"{split}/iou"]
    rule, fields = drawn("iou", 1)
    assert fields["x"] == "epoch"
    assert rule["epoch"].tolist() == [2]
    table, _ = drawn("loss", 0)
    assert table["value"].tolist() == CURVES["train/loss"]
    stored = pd.read_csv(inputs.evaluated / "per_patient.csv").query("split == 'test'")
    table, fields = drawn("patients")
    assert (fields["x"], fields["y"]) == ("tumor", "dice")
    assert table.set_index("patient_id")["dice"].to_dict() == (
        stored.set_index("patient_id")["dice"].to_dict()
    )
    assert table["tumor"].tolist() == (stored["tp"] + stored["fn"]).tolist()
    _, fields = drawn("subgroups", 0)
    assert (fields["x"], fields["x2"]) == ("dice_patient_mean_low", "dice_patient_mean_high")
    table, fields = drawn("subgroups", 1)
    groups = pd.read_csv(inputs.evaluated / "subgroups.csv").query("split == 'test'")
    assert fields["x"] == "dice_patient_mean"
    assert table["dice_patient_mean"].tolist() == groups["dice_patient_mean"].tolist()
    stored = pd.read_csv(inputs.evaluated / "reliability.csv").dropna(subset="test")
    table, fields = drawn("reliability", 1)
    assert (fields["x"], fields["y"]) == ("probability", "observed")
    assert table["probability"].tolist() == stored["test_probability"].tolist()
    assert table["observed"].tolist() == stored["test"].tolist()
    stored = pd.read_csv(inputs.evaluated / "risk_coverage.csv")
    table, fields = drawn("risk")
    assert (fields["x"], fields["y"]) == ("coverage", "risk")
    assert table["risk"].tolist() == stored["test"].tolist()


def test_the_same_inputs_give_the_same_bytes(
    run_stage: RunStage, inputs: Inputs, written: Written, tmp_path: Path
) -> None:
    again = run_report(run_stage, inputs, tmp_path / "again")
    assert again.page.read_bytes() == written.page.read_bytes()
    assert again.card.read_bytes() == written.card.read_bytes()


def test_report_and_card_depend_on_the_params(
    run_stage: RunStage, inputs: Inputs, tmp_path: Path
) -> None:
    real = run_report(
        run_stage,
        inputs,
        tmp_path / "lgg",
        acquire__dataset="lgg",
        split__by="slice",
        evaluate__component_share=0.25,
    )
    for text in (real.page.read_text(), real.card.read_text()):
        assert re.search(r"connected components[^.]*\b25 %", html.unescape(text))
        assert "CC BY-NC-SA" in text
        assert "inflated" in text
        assert re.search(r"fold 0 of 5\b", text)
        assert "synthetic phantom" not in text.lower()
    own = run_report(
        run_stage,
        inputs,
        tmp_path / "own",
        acquire__dataset="/a/<b>.zip",
        split__by="institution",  # which has as many folds as there are institutions
        report__patients=3,
        evaluate__component_share=1,
    )
    assert re.search(r"connected components[^.%]*largest", own.card.read_text())
    page = own.page.read_text()
    for text in (page, own.card.read_text()):
        assert re.search(r"fold 0\b(?! of)", text)
    assert "/a/&lt;b&gt;.zip" in page
    assert page.count('<article class="card"') == 3
    assert "3 of 6 patients" in page
    assert "license: other" in own.card.read_text()


def test_the_best_median_and_worst_patients_are_labeled() -> None:
    def table_of(dice: list[float]) -> pd.DataFrame:
        names = [f"p{n}" for n in range(len(dice))]
        return gallery.ranked(pd.DataFrame({"patient_id": names, "dice": dice}))

    def places(dice: list[float]) -> list[str]:
        found: list[str] = table_of(dice)["place"].tolist()
        return found

    def ranks(dice: list[float]) -> list[int]:
        found: list[int] = table_of(dice)["rank"].tolist()
        return found

    nan = float("nan")
    assert places([0.5]) == ["best"]
    assert places([0.1, 0.9]) == ["best", "worst"]
    assert places([0.3, 0.2, 0.1]) == ["best", "median", "worst"]
    assert places([nan, 0.3, 0.2, 0.1, nan]) == ["best", "median", "worst", "", ""]
    assert places([nan, nan]) == ["", ""]
    assert ranks([nan, 0.3, 0.2, 0.1, nan]) == [1, 2, 3, 0, 0]
    many = places(list(np.linspace(0, 1, 22)))
    assert [many.index(name) for name in ("best", "median", "worst")] == [0, 9, 19]
    assert [many.count(name) for name in ("best", "median", "worst", "")] == [3, 3, 3, 13]
    table = gallery.ranked(pd.DataFrame({"patient_id": list("abc"), "dice": [0.2, 0.3, 0.2]}))
    assert table["patient_id"].tolist() == ["b", "a", "c"]


def test_the_best_worst_and_middle_of_many_patients_are_shown() -> None:
    table = pd.DataFrame({"rank": range(1, 41)})
    shown = gallery.chosen_for_display(table, 10)["rank"].tolist()
    assert shown == [1, 2, 3, 19, 20, 21, 22, 38, 39, 40]
    assert len(gallery.chosen_for_display(table, 40)) == 40
    assert len(set(gallery.chosen_for_display(table, 39)["rank"])) == 39
    undefined = pd.DataFrame({"rank": [1, 2, 3, 4, 0, 0, 0]})
    assert gallery.chosen_for_display(undefined, 3)["rank"].tolist() == [1, 2, 4]
    assert gallery.chosen_for_display(undefined, 5)["rank"].tolist() == [1, 2, 3, 4, 0]


def test_a_card_opens_at_the_slice_with_the_most_wrong_pixels() -> None:
    counts = [[900, 1, 1], [5, 20, 3], [0, 0, 22], [100, 2, 2]]
    assert max(range(4), key=lambda at: gallery.error_then_overlap(counts[at])) == 1
    perfect = [[0, 0, 0], [7, 0, 0], [9, 0, 0]]
    assert max(range(3), key=lambda at: gallery.error_then_overlap(perfect[at])) == 2
    steps = gallery.area_steps([[4, 0, 0], [0, 1, 2]])
    assert steps == {"reference": "M0 1V0.000h1V0.500h1V1", "prediction": "M0 1V0.000h1V0.750h1V1"}


def test_unreadable_inputs_are_errors_and_keep_the_old_report(
    run_stage: RunStage, inputs: Inputs, tmp_path: Path
) -> None:
    page, card = tmp_path / "report/index.html", tmp_path / "MODEL_CARD.md"
    page.parent.mkdir()
    page.write_text("old")
    card.write_text("old")
    other = tmp_path / "other"
    other.mkdir()
    (other / "evaluate.json").write_text("{")
    rows = [
        ({"predictions": other}, other, "`dvc repro predict`"),
        ({"evaluated": other}, other / "definitions.csv", "`dvc repro report`"),
        ({"metrics": other / "evaluate.json"}, other / "evaluate.json", "`dvc repro report`"),
        ({"trained": other / "none.json"}, other / "none.json", "`dvc repro report`"),
        ({"curves": other}, other / "train/loss.tsv", "`dvc repro report`"),
        ({"unet": other / "none.safetensors"}, other / "none.safetensors", "No such file"),
        ({"encoder": inputs.unet}, inputs.unet, "`dvc repro fetch_encoder`"),
    ]
    for change, path, hint in rows:
        paths = [*inputs._replace(**change), page, card]
        outcome = run_stage(report.main, paths, **PARAMS)
        assert outcome.code == 1
        assert str(path) in outcome.error
        assert hint in outcome.error
        assert page.read_text() == card.read_text() == "old"
        assert [file.name for file in page.parent.iterdir()] == ["index.html"]


def test_the_report_links_only_to_itself(written: Written) -> None:
    """Scripts are left out: the browser tests and the content security policy cover them."""
    html = re.sub(r"<script>.*?</script>", "", written.page.read_text(), flags=re.DOTALL)
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", html)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "default-src 'none'" in html
