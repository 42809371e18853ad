"""The report in a real browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

from browsing import needs_browser, show, watched
from helpers import SIZE
from page.facts import TABULATED
from report_inputs import N_TESTED, Inputs, Written

pytestmark = needs_browser


@pytest.fixture
def browser(chromium: webdriver.Chrome, written: Written) -> Iterator[webdriver.Chrome]:
    """Return a browser with the report; check afterwards that nothing was logged or requested."""
    with watched(chromium, written.page):
        open_page(chromium, written.page, width=1280)
        yield chromium


def open_page(browser: webdriver.Chrome, page: Path, *, width: int, scheme: str = "light") -> None:
    show(browser, page, width=width, scheme=scheme)
    # Charts are drawn after the page has loaded and move the content below them.
    WebDriverWait(browser, 60).until(
        lambda _: len(browser.find_elements(By.CSS_SELECTOR, ".chart svg.marks")) == 6
    )


def visible_cards(browser: webdriver.Chrome) -> list[WebElement]:
    return [c for c in browser.find_elements(By.CSS_SELECTOR, ".card") if c.is_displayed()]


def scan(card: WebElement) -> str:
    return card.find_element(By.TAG_NAME, "img").get_attribute("src") or ""


def slider(card: WebElement) -> WebElement:
    return card.find_element(By.CSS_SELECTOR, "[type=range]")


def caption(card: WebElement) -> str:
    return card.find_element(By.TAG_NAME, "figcaption").text


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


def test_buttons_and_keys_switch_the_sequence(browser: webdriver.Chrome) -> None:
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
    browser.find_element(By.TAG_NAME, "body").send_keys("1")  # keys work only in the gallery
    assert scan(card) == scans["FLAIR"]


def test_the_caption_names_a_missing_sequence(browser: webdriver.Chrome) -> None:
    Select(browser.find_element(By.ID, "choice")).select_by_value("all")
    [card] = [c for c in visible_cards(browser) if "without pre and post-contrast" in c.text]
    flair = scan(card)
    slider(card).send_keys("1")
    assert scan(card) == flair
    assert "Pre-contrast is missing" in caption(card)
    assert "FLAIR" in caption(card)


def test_outlines_and_errors_can_be_shown_and_hidden(browser: webdriver.Chrome) -> None:
    card = visible_cards(browser)[-1]
    assert "best" in card.text

    def drawn(name: str) -> bool:
        path = card.find_element(By.CSS_SELECTOR, f".over path.{name}")
        box = browser.execute_script("return arguments[0].getBBox().width", path)
        return path.value_of_css_property("display") != "none" and box > 0

    layers = ("reference", "prediction", "right", "missed", "false")
    assert [drawn(name) for name in layers] == [True] * 5
    slider(card).send_keys("e")
    assert [drawn(name) for name in layers] == [True, True, False, False, False]
    slider(card).send_keys("o")
    assert not any(drawn(name) for name in layers)
    for name in ("Errors", "Outlines"):
        browser.find_element(By.XPATH, f"//fieldset[@id='layers']//label[.='{name}']").click()
    assert all(drawn(name) for name in layers)


def test_a_card_shows_the_stored_scores_and_counts(
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
        counts = rf"\b{tp} pixels\b.*\b{fn} missed\b.*\b{fp} false\b"
        assert re.search(counts, caption(card))
        assert re.search(counts, card.find_element(By.TAG_NAME, "img").get_attribute("alt") or "")
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


def test_the_legend_has_the_same_styles_as_the_scans(browser: webdriver.Chrome) -> None:
    """Each sample has the color, dashes and pattern of the path with the same name."""
    card = visible_cards(browser)[0]
    words = {"reference": ["reference"], "prediction": ["prediction", "dashed"]}
    words |= {"right": ["correct"], "missed": ["missed", "striped"], "false": ["false", "dotted"]}
    shapes = {"missed": "rect", "false": "circle"}
    for name, parts in words.items():
        sample = browser.find_element(By.CSS_SELECTOR, f".legend path.{name}")
        text = sample.find_element(By.XPATH, "../..").text
        assert all(part in text for part in parts), text
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


def test_patients_can_be_sorted_and_filtered(browser: webdriver.Chrome, inputs: Inputs) -> None:
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows_and_text_has_enough_contrast(
    browser: webdriver.Chrome, written: Written, width: int, scheme: str
) -> None:
    open_page(browser, written.page, width=width, scheme=scheme)
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
    for color in (text, label, soft):  # the contrast that WCAG 2.2 level AA requires of text
        assert (max(color, ground) + 0.05) / (min(color, ground) + 0.05) >= 4.5


def luminance(color: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)` in [0, 1], as defined by WCAG 2.2."""
    channels = np.array([int(n) for n in re.findall(r"\d+", color)[:3]]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_images_inputs_and_charts_have_accessible_names(browser: webdriver.Chrome) -> None:
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
    labels = [chart.get_attribute("aria-label") or "" for chart in charts]
    [iou] = [label for label in labels if label.startswith("IoU by epoch")]
    assert "train 0.300, val 0.400;" in iou
    assert iou.endswith("epoch 2")
    assert [
        label
        for label in labels
        if label.startswith("Dice against") and label.endswith(f"n = {N_TESTED}")
    ]
