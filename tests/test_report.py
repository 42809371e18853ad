"""The page and the card of a phantom: their figures and bytes, and the page in a real browser."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

import evaluate
import explore
import gallery
import report
from conftest import ROOT, SIZE, Data, RunStage, noisy, params, run_names, write_maps
from glossary import DEFINITIONS, SCORES, tell, told
from manifest import read_manifest
from network import Encoder, Model, build_encoder, save_tensors
from outputs import file_sha256

TABULATED = report.TABULATED
N_TESTED = 6  # of the phantom's ten patients, the two that lack sequences among them


class Inputs(NamedTuple):
    """Everything that the stage reads, in its order."""

    templates: Path
    images: Path
    masks: Path
    splits: Path
    patients: Path
    predictions: Path
    encoder: Path
    unet: Path
    fetched: Path
    trained: Path
    curves: Path
    metrics: Path
    evaluated: Path
    exploration: Path
    explored: Path


CURVES = {"train/loss": [0.5, 0.4, 0.3], "train/iou": [0.1, 0.2, 0.3], "val/iou": [0.2, 0.5, 0.4]}


def write_curves(folder: Path) -> None:
    for name, values in CURVES.items():
        path = folder / f"{name}.tsv"
        path.parent.mkdir(parents=True, exist_ok=True)
        curve = pd.Series(values, index=[1, 2, 3], name=path.stem)
        curve.to_csv(path, sep="\t", index_label="step")


@pytest.fixture(scope="module")
def inputs(
    data: Data, masks: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Inputs:
    """Return what the graph would have left of a network that is mostly right."""
    root = tmp_path_factory.mktemp("report")
    found = Inputs(
        ROOT / "src/templates",
        data.images,
        data.masks,
        root / "splits.csv",
        data.patients,
        root / "predictions",
        root / "encoder.safetensors",
        root / "unet.safetensors",
        root / "fetch_encoder.json",
        root / "metrics.json",
        root / "curves",
        root / "evaluate.json",
        root / "evaluate",
        root / "explore.json",
        root / "explore",
    )
    manifest = read_manifest(data.splits)
    names = sorted(set(manifest["patient_id"]))
    sides = dict(zip(names, ["test"] * N_TESTED + ["val"] * 2 + ["train"] * 2, strict=True))
    manifest.assign(split=manifest["patient_id"].map(sides)).to_csv(found.splits, index=False)
    found.predictions.mkdir()
    answers = noisy(masks)
    worst = manifest["slice_id"][manifest["patient_id"] == names[3]]
    answers |= {slice_id: 0.3 * answers[slice_id] for slice_id in worst}  # all of it missed
    write_maps(found.predictions, answers)
    evaluate.main(
        found.masks,
        found.splits,
        found.patients,
        found.predictions,
        found.metrics,
        found.evaluated,
        seed=1,
        threshold=0.5,
        largest_component=False,
        resamples=100,
    )
    explore.main(
        found.images, found.masks, data.manifest, found.patients, found.exploration, found.explored
    )
    write_curves(found.curves)
    found.trained.write_text(json.dumps({"best": {"epoch": 2, "val_iou": 0.5}}))
    encoder = build_encoder("mobilenet_v2").state_dict()
    save_tensors(encoder, Encoder("mobilenet_v2"), found.encoder)
    sha256 = file_sha256(found.encoder)
    model = Model("mobilenet_v2", sha256, True, 48, "none")
    save_tensors({"tensor": torch.zeros(3)}, model, found.unet)
    fetched = {"name": "mobilenet_v2", "weights": "none", "sha256": sha256, "n_parameters": 2223872}
    found.fetched.write_text(json.dumps(fetched))
    return found


class Written(NamedTuple):
    """What the stage wrote."""

    page: Path
    card: Path


PARAMS = {
    "acquire__dataset": "phantom",
    "evaluate__resamples": 100,
    "evaluate__largest_component": False,
}


def run_report(run_stage: RunStage, inputs: Inputs, folder: Path, **overrides: Any) -> Written:
    written = Written(folder / "report/index.html", folder / "MODEL_CARD.md")
    names = run_names("report")
    outcome = run_stage(report.main, [*inputs, *written], *names, **{**PARAMS, **overrides})
    assert outcome.code == 0, outcome.error
    return written


@pytest.fixture(scope="module")
def written(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("written")
    found = Written(folder / "report/index.html", folder / "MODEL_CARD.md")
    values = yaml.safe_load(yaml.safe_dump(params(**PARAMS)))  # in the order of run_stage's file
    sections = ("seed", "acquire", "split", "encoder", "train", "predict", "evaluate")
    told_params = {name: values[name] for name in sections}
    report.main(*inputs, *found, **told_params, report_patients=30)
    return found


class Figures(HTMLParser):
    """The figures of a page: the headline by id, the others by the key of their row."""

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


def test_page_and_card_tell_the_figures_of_evaluate(inputs: Inputs, written: Written) -> None:
    scores = json.loads(inputs.metrics.read_text())
    found = Figures(written.page.read_text())
    assert found.headline == {
        name: f"{scores['test'][name]:.3f}"
        for name in ("dice_patient_mean", "dice_patient_median", "iou", "detection_auroc")
    }
    assert set(found.rows) == {score.key for score in SCORES}
    card = written.card.read_text()
    lines = card.splitlines()
    for score in SCORES:
        shown = [tell(score, scores[split]) for split in TABULATED]
        assert found.rows[score.key] == [each.text for each in shown]
        assert found.stored[score.key] == [scores[split][score.key] for split in TABULATED]
        [row] = [each for each in lines if re.match(rf"\| {score.label} \| .*, n = ", each)]
        cells = [
            f"{each.text} ({each.interval}), n = {each.n}"
            if each.interval
            else f"{each.text}, n = {each.n}"
            for each in shown
        ]
        assert row == f"| {score.label} | {' | '.join(cells)} |"


def test_every_score_and_its_n_is_told_as_stored() -> None:
    values: dict[str, Any] = {
        "iou": 0.5, "iou_low": 0.25, "iou_high": 0.75, "hd95_slice_mean": 1234.56,
        "n_slices": 3000, "n_slices_abnormal": 1000, "n_slices_hd95": 900,
        "n_patients_dice": 7, "n_patients": 8,
        "fp_area_slice_healthy": 3.04, "dice_patient_mean": None,
        "dice_patient_mean_low": None, "dice_patient_mean_high": None,
    }  # fmt: skip
    by_key = {score.key: score for score in SCORES}
    of = "slices of 8 patients"
    assert tell(by_key["iou"], values) == (0.5, "0.500", "0.250 to 0.750", f"3,000 {of}")
    assert tell(by_key["hd95_slice_mean"], values) == (1234.56, "1,234.6", "", f"900 {of}")
    assert tell(by_key["fp_area_slice_healthy"], values) == (3.04, "3.0", "", f"2,000 {of}")
    assert tell(by_key["dice_patient_mean"], values) == (None, "undefined", "", "7 patients")


def test_no_score_of_evaluate_is_left_out(inputs: Inputs) -> None:
    scores = json.loads(inputs.metrics.read_text())["test"]
    named = {score.key for score in SCORES}
    for key in scores:
        bound = re.sub("_(low|high)$", "", key) in named
        counted = re.match(r"n_|threshold$|detection_(tp|fp|fn|tn)$", key)
        assert key in named or bound or counted, key


def test_the_card_names_files_by_their_hash_and_the_declared_artifact(
    inputs: Inputs, written: Written
) -> None:
    card = written.card.read_text()
    assert f"| SHA-256 | `{file_sha256(inputs.unet)}` |" in card
    assert f"| SHA-256 of the encoder | `{file_sha256(inputs.encoder)}` |" in card
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    [(name, artifact)] = graph["artifacts"].items()
    assert f"the artifact `{name}` of `dvc.yaml`" in card
    assert artifact["path"] in graph["stages"]["report"]["cmd"].split()
    assert artifact["path"] in graph["stages"]["train"]["outs"]
    assert "**Not a medical device, not for clinical use.**" in card
    assert "synthetic phantom. Its figures say nothing about patients" in card
    assert "CC BY-NC-SA" not in card
    assert "| `train.learning_rate` | 0.003 |" in card
    assert "| `encoder.frozen` | true |" in card
    assert "50 epochs; epoch 2 was kept, the best on val (IoU 0.500)." in card


@pytest.mark.parametrize(
    ("frozen", "best_epoch", "told"),
    [
        (False, 50, "trained too"),
        (True, 45, "frozen"),
        (True, 48, "frozen, then trained too for 3 epochs"),
    ],
)
def test_the_encoder_is_told_as_it_was_in_the_epoch_that_is_kept(
    frozen: bool, best_epoch: int, told: str
) -> None:
    params = {"encoder": {"frozen": frozen}, "train": {"epochs": 50, "thaw_epochs": 5 * frozen}}
    assert report.encoder_training(params, best_epoch) == told


def test_subgroups_and_definitions_are_those_of_the_tables(
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
        cells = "".join(f"<td>{told(value)}</td>" for value in table[name])
        assert f'<tr><th scope="row">{label}</th>{cells}</tr>' in page
    cells = "".join(f"<td>{n}</td>" for n in table["n_patients"])
    assert f'<tr><th scope="row">n, patients</th>{cells}</tr>' in page
    manifest = read_manifest(inputs.splits)
    for split, rows in manifest.groupby("split"):
        numbers = rows["patient_id"].nunique(), len(rows), rows["abnormal"].sum()
        assert f"| {split} | {' | '.join(map(str, numbers))} |" in card
        cells = "".join(f"<td>{n}</td>" for n in numbers)
        assert f'<tr><th scope="row">{split}</th>{cells}</tr>' in page


def test_a_group_with_an_interval_has_it_in_order() -> None:
    row = {"attribute": "a|b", "value": "<c>", "n_patients_dice": 12, "dice_patient_mean": 0.5}
    row |= {"dice_patient_mean_low": 0.4, "dice_patient_mean_high": 0.625}
    row |= {"dice_patient_median": 0.55, "iou": np.nan}
    [told_row] = report.subgroup_rows(pd.DataFrame([row]))
    assert (told_row["mean"], told_row["interval"]) == ("0.500", "0.400 to 0.625")
    assert (told_row["median"], told_row["iou"], told_row["n"]) == ("0.550", "undefined", 12)
    assert report.cell("a|b\n<c>") == "a\\|b &lt;c>"


def test_the_charts_hold_the_tables(inputs: Inputs, written: Written) -> None:
    page = written.page.read_text()
    [text] = re.findall(r'<script type="application/json" id="charts">(.*?)</script>', page)
    charts = json.loads(text)

    def drawn(name: str, layer: int | None = None) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Return a layer's data, and the field of each of its channels."""
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


def test_what_page_and_card_say_follows_the_params(
    run_stage: RunStage, inputs: Inputs, tmp_path: Path
) -> None:
    real = run_report(
        run_stage, inputs, tmp_path / "lgg", acquire__dataset="lgg", split__by="slice"
    )
    for text in (real.page.read_text(), real.card.read_text()):
        assert "CC BY-NC-SA" in text
        assert "inflated" in text
        assert "phantom, which says" not in text
    own = run_report(
        run_stage, inputs, tmp_path / "own", acquire__dataset="/a/<b>.zip", report__patients=3
    )
    page = own.page.read_text()
    assert "/a/&lt;b&gt;.zip" in page
    assert page.count('<article class="card"') == 3
    assert "3 of 6 patients" in page
    assert "The license of the data decides" in own.card.read_text()


def test_the_best_the_median_and_the_worst_are_named() -> None:
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


def test_of_many_patients_both_ends_and_the_middle_are_shown() -> None:
    table = pd.DataFrame({"rank": range(1, 41)})
    shown = gallery.chosen_for_display(table, 10)["rank"].tolist()
    assert shown == [1, 2, 3, 19, 20, 21, 22, 38, 39, 40]
    assert len(gallery.chosen_for_display(table, 40)) == 40
    assert len(set(gallery.chosen_for_display(table, 39)["rank"])) == 39
    undefined = pd.DataFrame({"rank": [1, 2, 3, 4, 0, 0, 0]})
    assert gallery.chosen_for_display(undefined, 3)["rank"].tolist() == [1, 2, 4]
    assert gallery.chosen_for_display(undefined, 5)["rank"].tolist() == [1, 2, 3, 4, 0]


def test_a_patient_opens_with_the_slice_that_has_most_wrong() -> None:
    counts = [[900, 1, 1], [5, 20, 3], [0, 0, 22], [100, 2, 2]]
    assert max(range(4), key=lambda at: gallery.most_telling(counts[at])) == 1
    perfect = [[0, 0, 0], [7, 0, 0], [9, 0, 0]]
    assert max(range(3), key=lambda at: gallery.most_telling(perfect[at])) == 2
    steps = gallery.area_steps([[4, 0, 0], [0, 1, 2]])
    assert steps == {
        "reference": "M0 1V0.000h1V0.500h1V1",
        "prediction": "M0 1V0.000h1V0.750h1V1",
    }


def test_inputs_of_different_runs_are_refused_and_the_old_page_stays(
    run_stage: RunStage, inputs: Inputs, masks: dict[str, np.ndarray], tmp_path: Path
) -> None:
    page, card = tmp_path / "report/index.html", tmp_path / "MODEL_CARD.md"
    page.parent.mkdir()
    page.write_text("old")
    card.write_text("old")
    other = tmp_path / "other"
    shutil.copytree(inputs.predictions, other / "predictions")
    write_maps(other / "predictions", noisy(masks, seed=1))
    cut = pd.read_csv(inputs.evaluated / "per_slice.csv").iloc[1:]
    shutil.copytree(inputs.evaluated, other / "evaluate")
    cut.to_csv(other / "evaluate/per_slice.csv", index=False)
    (other / "evaluate.json").write_text("{")
    rows = [
        ({"predictions": other / "predictions"}, "the predictions are not those that were scored"),
        ({"evaluated": other / "evaluate"}, "slices were scored, of which"),
        ({"metrics": other / "evaluate.json"}, "evaluate.json: cannot be read"),
        ({"trained": other / "none.json"}, "none.json: cannot be read"),
        ({"curves": other}, "loss.tsv: cannot be read"),
        ({"unet": other / "none.safetensors"}, "No such file or directory"),
        ({"encoder": inputs.unet}, "not the file that was fetched"),
    ]
    for change, message in rows:
        paths = [*inputs._replace(**change), page, card]
        outcome = run_stage(report.main, paths, *run_names("report"), **PARAMS)
        assert outcome.code == 1
        assert message in outcome.error
        assert page.read_text() == card.read_text() == "old"
        assert [path.name for path in page.parent.iterdir()] == ["index.html"]


def test_the_page_names_nothing_outside_of_itself(written: Written) -> None:
    """Scripts of the charts apart: those are held by the browser's tests and the page's policy."""
    html = re.sub(r"<script>.*?</script>", "", written.page.read_text(), flags=re.DOTALL)
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", html)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert "default-src 'none'" in html


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
in_a_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium and chromedriver (Debian: chromium-driver)"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium: webdriver.Chrome, written: Written) -> Iterator[webdriver.Chrome]:
    """Return a browser that shows the page; afterwards nothing was logged or asked for."""
    open_page(chromium, written.page, width=1280)
    yield chromium
    assert logged(chromium, "browser") == []
    asked = [
        message["params"]["request"]["url"]
        for entry in logged(chromium, "performance")
        for message in [json.loads(entry["message"])["message"]]
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert {url for url in asked if url.startswith("file:")} <= {written.page.as_uri()}


def logged(browser: webdriver.Chrome, kind: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = browser.get_log(kind)  # type: ignore[no-untyped-call]
    return entries


def open_page(browser: webdriver.Chrome, page: Path, *, width: int, scheme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


def visible_cards(browser: webdriver.Chrome) -> list[WebElement]:
    return [c for c in browser.find_elements(By.CSS_SELECTOR, ".card") if c.is_displayed()]


def scan(card: WebElement) -> str:
    return card.find_element(By.TAG_NAME, "img").get_attribute("src") or ""


def slider(card: WebElement) -> WebElement:
    return card.find_element(By.CSS_SELECTOR, "[type=range]")


def caption(card: WebElement) -> str:
    return card.find_element(By.TAG_NAME, "figcaption").text


@in_a_browser
def test_the_slider_moves_through_the_slices(browser: webdriver.Chrome) -> None:
    card = visible_cards(browser)[0]
    seen = {scan(card): caption(card)}
    for _ in range(3):
        slider(card).send_keys(Keys.ARROW_RIGHT)
        seen[scan(card)] = caption(card)
    assert len(seen) == len(set(seen.values())) == 4
    numbers = [int(re.match(r"Slice (\d+) of", text)[1]) for text in seen.values()]  # type: ignore[index]
    assert np.diff(numbers).tolist() == [1, 1, 1]
    slider(card).send_keys(Keys.HOME)
    assert caption(card).startswith("Slice 1 of ")
    image = card.find_element(By.TAG_NAME, "img")
    assert browser.execute_script("return arguments[0].naturalWidth", image) == 48
    alt = image.get_attribute("alt") or ""
    assert alt.startswith("FLAIR scan of PHANTOM_")
    assert "Slice 1 of" in alt


@in_a_browser
def test_a_drag_across_the_scan_moves_through_the_slices(browser: webdriver.Chrome) -> None:
    card = visible_cards(browser)[0]
    slider(card).send_keys(Keys.HOME)
    image = card.find_element(By.CSS_SELECTOR, ".scan")
    actions = webdriver.ActionChains(browser)
    actions.scroll_to_element(image).move_to_element_with_offset(image, -60, 0)
    actions.click_and_hold().move_by_offset(120, 0).release().perform()
    at = int(slider(card).get_attribute("value") or 0)
    assert at > 1
    actions.move_by_offset(-100, 0).perform()
    assert int(slider(card).get_attribute("value") or 0) == at


@in_a_browser
def test_the_switch_shows_the_other_sequences(browser: webdriver.Chrome) -> None:
    [card] = [c for c in visible_cards(browser) if "without" not in c.text][:1]
    scans = {}
    for name in ("Pre-contrast", "Post-contrast", "FLAIR"):
        browser.find_element(By.XPATH, f"//fieldset[@id='sequence']//label[.='{name}']").click()
        scans[name] = scan(card)
    assert len(set(scans.values())) == 3
    for key, name in (("1", "Pre-contrast"), ("3", "Post-contrast"), ("2", "FLAIR")):
        slider(card).send_keys(key)
        assert scan(card) == scans[name]
    browser.execute_script("document.activeElement.blur()")
    browser.find_element(By.TAG_NAME, "body").send_keys("1")  # keys are the gallery's alone
    assert scan(card) == scans["FLAIR"]


@in_a_browser
def test_a_missing_sequence_is_said_to_be_missing(browser: webdriver.Chrome) -> None:
    Select(browser.find_element(By.ID, "choice")).select_by_value("all")
    [card] = [c for c in visible_cards(browser) if "without pre and post-contrast" in c.text]
    flair = scan(card)
    slider(card).send_keys("1")
    assert scan(card) == flair
    assert caption(card).endswith("Pre-contrast is missing: this is FLAIR.")


@in_a_browser
def test_outlines_and_errors_are_drawn_and_can_be_put_away(browser: webdriver.Chrome) -> None:
    card = visible_cards(browser)[-1]
    assert "best" in card.text

    def drawn(name: str) -> bool:
        path = card.find_element(By.CSS_SELECTOR, f".over path.{name}")
        box = browser.execute_script("return arguments[0].getBBox().width", path)
        return path.value_of_css_property("display") != "none" and box > 0

    everything = ("reference", "prediction", "right", "missed", "false")
    assert [drawn(name) for name in everything] == [True] * 5
    slider(card).send_keys("e")
    assert [drawn(name) for name in everything] == [True, True, False, False, False]
    slider(card).send_keys("o")
    assert not any(drawn(name) for name in everything)
    for name in ("Errors", "Outlines"):
        browser.find_element(By.XPATH, f"//fieldset[@id='layers']//label[.='{name}']").click()
    assert all(drawn(name) for name in everything)


@in_a_browser
def test_what_a_card_says_and_draws_is_what_was_scored(
    browser: webdriver.Chrome, inputs: Inputs
) -> None:
    Select(browser.find_element(By.ID, "choice")).select_by_value("all")
    slices = pd.read_csv(inputs.evaluated / "per_slice.csv")
    patients = pd.read_csv(inputs.evaluated / "per_patient.csv").set_index("patient_id")
    for card in visible_cards(browser):
        name = card.find_element(By.TAG_NAME, "h3").text
        row = patients.loc[name]
        assert f"Dice {row['dice']:.3f}, IoU {row['iou']:.3f}, rank " in card.text
        assert f"{row['tp'] + row['fn']:,} tumor pixels" in card.text
        own = slices[slices["patient_id"] == name].reset_index()
        at = int(slider(card).get_attribute("value") or 0)
        wrong = own["fp"] + own["fn"]
        assert wrong[at] == wrong.max()
        tp, fp, fn = own.loc[at, ["tp", "fp", "fn"]]
        said = f"{tp} pixels right, {fn} missed, {fp} false."
        assert said in caption(card)
        assert said in (card.find_element(By.TAG_NAME, "img").get_attribute("alt") or "")
        corners = browser.execute_script(
            "const over = arguments[0].querySelector('.over'), m = over.getScreenCTM();"
            "const box = arguments[0].querySelector('img').getBoundingClientRect();"
            "const at = (x, y) => new DOMPoint(x, y).matrixTransform(m);"
            f"const a = at(0, 0), b = at({SIZE}, {SIZE});"
            "return [a.x - box.left, a.y - box.top, b.x - box.right, b.y - box.bottom]",
            card,
        )
        assert np.abs(corners).max() < 0.01
        now = card.find_element(By.CSS_SELECTOR, ".areas .now")
        assert int(now.get_dom_attribute("x") or -1) == at


@in_a_browser
def test_the_legend_is_drawn_as_the_scans_are(browser: webdriver.Chrome) -> None:
    """What each sample looks like is what a path of its name does, dashes and patterns too."""
    card = visible_cards(browser)[0]
    words = {"reference": "outline of the reference", "prediction": "prediction, dashed"}
    words |= {"right": "right, plain", "missed": "missed, striped", "false": "false, dotted"}
    shapes = {"missed": "rect", "false": "circle"}
    for name, text in words.items():
        sample = browser.find_element(By.CSS_SELECTOR, f".legend path.{name}")
        assert text in sample.find_element(By.XPATH, "../..").text
        drawn = card.find_element(By.CSS_SELECTOR, f".over path.{name}")
        for style in ("stroke", "stroke-dasharray", "opacity"):
            assert sample.value_of_css_property(style) == drawn.value_of_css_property(style)
        assert (drawn.value_of_css_property("stroke-dasharray") != "none") is (name == "prediction")
        if name in shapes:
            assert f"#{name}-{SIZE}" in drawn.value_of_css_property("fill")
            pattern = browser.find_element(By.ID, f"{name}-{SIZE}")
            assert pattern.find_elements(By.CSS_SELECTOR, f"{shapes[name]}.ink")
            scale = pattern.get_dom_attribute("patternTransform") or ""
            assert scale.startswith(f"scale({SIZE / 256})")


@in_a_browser
def test_patients_are_sorted_and_chosen(browser: webdriver.Chrome, inputs: Inputs) -> None:
    table = pd.read_csv(inputs.evaluated / "per_patient.csv").query("split == 'test'")
    table["tumor"] = table["tp"] + table["fn"]

    def names() -> list[str]:
        return [card.find_element(By.TAG_NAME, "h3").text for card in visible_cards(browser)]

    order = Select(browser.find_element(By.ID, "sort"))
    by_dice = table.sort_values("dice")["patient_id"].tolist()
    shown = Select(browser.find_element(By.ID, "choice"))
    shown.select_by_value("all")
    assert names() == by_dice
    order.select_by_value("best")
    assert names() == by_dice[::-1]
    order.select_by_value("tumor")
    assert names() == table.sort_values("tumor", ascending=False)["patient_id"].tolist()
    order.select_by_value("name")
    assert names() == sorted(by_dice)
    assert len(names()) == N_TESTED


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows_and_text_can_be_read(
    browser: webdriver.Chrome, written: Written, width: int, scheme: str
) -> None:
    open_page(browser, written.page, width=width, scheme=scheme)
    WebDriverWait(browser, 20).until(
        lambda _: len(browser.find_elements(By.CSS_SELECTOR, ".chart svg.marks")) == 6
    )
    whole = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.execute_script(whole) == 0
    assert browser.execute_script("return innerWidth") == width
    wide = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll table')"
        " && !e.closest('svg') && e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    colors = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor,"
        " getComputedStyle(document.querySelector('.chart text')).fill,"
        " getComputedStyle(document.querySelector('small')).color]"
    )
    text, ground, label, soft = (luminance(color) for color in colors)
    assert (ground < 0.1) is (scheme == "dark")
    for each in (text, label, soft):  # the contrast that WCAG 2.2 asks of text, level AA
        assert (max(each, ground) + 0.05) / (min(each, ground) + 0.05) >= 4.5


def luminance(color: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)`, in [0, 1]; WCAG 2.2."""
    channels = np.array([int(n) for n in re.findall(r"\d+", color)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@in_a_browser
def test_everything_has_a_name_for_a_screen_reader(browser: webdriver.Chrome) -> None:
    nameless = browser.execute_script(
        "return [...document.querySelectorAll('img')].filter(e => !e.alt)"
        ".concat([...document.querySelectorAll('input, select')].filter("
        "e => !e.labels.length && !e.ariaLabel)).map(e => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    headings = [e.tag_name for e in browser.find_elements(By.CSS_SELECTOR, "h1, h2, h3")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1
    for name in TABULATED:
        assert browser.find_elements(By.XPATH, f"//th[.='{name}']")
    charts = browser.find_elements(By.CSS_SELECTOR, ".chart[aria-label]")
    assert len(charts) == 6
    labels = {chart.get_attribute("aria-label") for chart in charts}
    assert "IoU by epoch; at the end train 0.300, val 0.400; epoch 2 was kept" in labels
    assert f"Dice against tumor volume, one point a patient, n = {N_TESTED}" in labels
