"""The page of a segmented scan in a real browser."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import segment
from browsing import needs_browser, show, watched
from heads import DEPTH, BrightTumor, make_head, write_head

pytestmark = needs_browser


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a synthetic patient without post-contrast."""
    folder = tmp_path_factory.mktemp("result")
    names = {"flair": "flair.nii.gz", "pre_contrast": "t1.nii.gz"}
    write_head(folder / "<b>patient", make_head(), names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "ReleasedModel", BrightTumor)
        segment.main([str(folder / "<b>patient"), "--out", str(folder / "out")])
    return folder / "out/index.html"


@pytest.fixture
def browser(chromium: webdriver.Chrome, result: Path) -> Iterator[webdriver.Chrome]:
    with watched(chromium, result):
        show(chromium, result, width=1280)
        yield chromium


def caption(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "figcaption").text


def test_the_page_starts_at_the_slice_with_most_tumor_and_keys_work(
    browser: webdriver.Chrome,
) -> None:
    slider = browser.find_element(By.CSS_SELECTOR, "[type=range]")
    assert caption(browser).startswith(f"Slice 8 of {DEPTH}. ")
    assert caption(browser).endswith(" cm².")
    slider.send_keys(Keys.HOME)
    assert caption(browser) == f"Slice 1 of {DEPTH}. No tumor."
    scan = browser.find_element(By.CSS_SELECTOR, ".scan img")
    seen = []
    for key in "123":
        slider.send_keys(key)
        seen.append(scan.get_attribute("src"))
    assert seen[0] != seen[1] == seen[2]
    assert caption(browser).endswith("Post-contrast is missing: this is FLAIR.")


def test_keys_switch_outline_and_fill(browser: webdriver.Chrome) -> None:
    slider = browser.find_element(By.CSS_SELECTOR, "[type=range]")

    def shown() -> list[bool]:
        paths = (f".over .{name}" for name in ("prediction", "right"))
        return [browser.find_element(By.CSS_SELECTOR, each).is_displayed() for each in paths]

    assert shown() == [True, False]
    slider.send_keys("f")
    assert shown() == [True, True]
    slider.send_keys("o")
    assert shown() == [False, True]


def test_names_and_warnings_are_escaped(browser: webdriver.Chrome) -> None:
    assert browser.find_element(By.TAG_NAME, "h1").text == "<b>patient"
    warnings = [each.text for each in browser.find_elements(By.CLASS_NAME, "warning")]
    assert any("post-contrast T1" in warning for warning in warnings)


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(
    browser: webdriver.Chrome, result: Path, width: int, scheme: str
) -> None:
    show(browser, result, width=width, scheme=scheme)
    script = "return document.documentElement.scrollWidth"
    assert browser.execute_script(script) <= width
