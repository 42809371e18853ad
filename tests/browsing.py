"""Open pages in a real browser, where they must not log anything or request other files."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium and chromedriver (Debian: chromium-driver)"
)


def start_browser() -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


def logged(browser: webdriver.Chrome, kind: str) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = browser.get_log(kind)  # type: ignore[no-untyped-call]
    return entries


def show(browser: webdriver.Chrome, page: Path, *, width: int, scheme: str = "light") -> None:
    """Open a file in a window of the given width and color scheme."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


@contextmanager
def watched(browser: webdriver.Chrome, page: Path) -> Iterator[None]:
    """Open a window for a page; at the end check that it logged nothing and requested only itself.

    The window is new because a reloaded page keeps the state of its controls.
    """
    first = browser.current_window_handle
    browser.switch_to.new_window("window")
    yield
    browser.close()
    browser.switch_to.window(first)
    assert logged(browser, "browser") == []
    urls = [
        message["params"]["request"]["url"]
        for entry in logged(browser, "performance")
        for message in [json.loads(entry["message"])["message"]]
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert {url.partition(":")[0] for url in urls} <= {"file", "data", "blob"}
    assert {url for url in urls if url.startswith("file:")} <= {page.as_uri()}
