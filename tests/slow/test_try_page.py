"""The page that segments scans, opened from its file in a real browser, with the released model."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Image
from scipy.spatial.transform import Rotation
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

import build_page
import segment
from browsing import needs_browser, show, watched
from heads import NAMES_BY_SEQUENCE
from helpers import ROOT
from scans.fitting import fit
from scans.intensity import distinct, tissue_statistics
from scans.sequences import NAMES, SHORT, sequence_of
from scans.series import Axial

SCRIPTS = ROOT / ".venv/page/build"
RUNTIME = ROOT / ".venv/page/node_modules/onnxruntime-web"
TIMEOUT = 120  # most seconds for a segmentation
MAX_SIZE = 25e6  # most bytes of the page
FILES = ("example_flair.nii", "example_t1.nii", "example_t1ce.nii")

pytestmark = [
    needs_browser,
    pytest.mark.skipif(
        not shutil.which("npm") or not (ROOT / ".venv/page/ready").exists(),
        reason="no runtime for the page: `make install` installs it, with npm",
    ),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    subprocess.run(["make", "-C", ROOT, ".venv/page/build/ready"], check=True, capture_output=True)
    found: Path = tmp_path_factory.mktemp("page") / "try.html"
    build_page.main([str(SCRIPTS), str(RUNTIME), str(found)])
    return found


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the example files of the page."""
    folder: Path = tmp_path_factory.mktemp("example")
    script = f"""
        import {{ exampleFiles }} from {json.dumps(str(ROOT / "src/browser/phantom.js"))};
        import {{ writeFileSync }} from "node:fs";
        for (const file of exampleFiles()) {{
          const bytes = new Uint8Array(await file.arrayBuffer());
          writeFileSync({json.dumps(str(folder))} + "/" + file.name, bytes);
        }}"""
    subprocess.run(["node", "--input-type=module", "--eval", script], check=True)
    return folder


@pytest.fixture
def browser(chromium: webdriver.Chrome, page: Path, tmp_path: Path) -> Iterator[webdriver.Chrome]:
    with watched(chromium, page):
        show(chromium, page, width=1280)
        expected = {"behavior": "allow", "downloadPath": str(tmp_path)}
        chromium.execute_cdp_cmd("Browser.setDownloadBehavior", expected)
        yield chromium


def by(browser: webdriver.Chrome, name: str) -> WebElement:
    return browser.find_element(By.ID, name)


def status(browser: webdriver.Chrome) -> str:
    return by(browser, "status").text


def wait(browser: webdriver.Chrome, until: Callable[[], bool]) -> None:
    WebDriverWait(browser, TIMEOUT, poll_frequency=0.05).until(lambda _: until())


def choose(browser: webdriver.Chrome, *files: Path) -> None:
    by(browser, "input").send_keys("\n".join(map(str, files)))


def outline(browser: webdriver.Chrome) -> None:
    by(browser, "segment").click()
    wait(browser, lambda: status(browser).startswith("Done"))


def set_threshold(browser: webdriver.Chrome, value: float) -> None:
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'));"
    browser.execute_script(script, by(browser, "threshold"), value)
    wait(browser, lambda: by(browser, "threshold-value").text == f"{value:.2f}")


def saved(browser: webdriver.Chrome, folder: Path) -> Nifti1Image:
    """Save the page's mask into the download folder of this test; return it."""
    name = by(browser, "shown").text.removesuffix(".gz").removesuffix(".nii")
    by(browser, "save").click()
    wait(browser, (folder / f"{name}_mask.nii.gz").exists)
    image = nibabel.load(folder / f"{name}_mask.nii.gz")
    assert isinstance(image, Nifti1Image)
    return image


def by_segment(folder: Path, *files: Path) -> Nifti1Image:
    """Return the mask that the command writes for the same files."""
    flags = ("--flair", "--pre", "--post")
    words = [word for flag, file in zip(flags, files, strict=False) for word in (flag, str(file))]
    segment.main([*words, "--out", str(folder / "out")])
    image = nibabel.load(folder / "out/mask.nii.gz")
    assert isinstance(image, Nifti1Image)
    return image


def assert_same_mask(found: Nifti1Image, expected: Nifti1Image) -> None:
    """Allow a thousandth of the voxels to differ, because a browser rounds sums differently."""
    found_mask, expected_mask = (np.asarray(image.dataobj) for image in (found, expected))
    assert found_mask.shape == expected_mask.shape
    assert found_mask.dtype == np.uint8
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    assert expected_mask.any()
    assert (found_mask != expected_mask).sum() <= max(1, expected_mask.sum() / 1000)


def test_the_page_is_one_file_of_limited_size_with_the_license(page: Path) -> None:
    assert page.stat().st_size <= MAX_SIZE
    text = page.read_text(encoding="utf-8")
    assert "Copyright (c) Microsoft Corporation" in text
    assert "Permission is hereby granted, free of charge" in text


def test_the_example_is_segmented(browser: webdriver.Chrome) -> None:
    """Only check that a result is shown, not which voxels are tumor."""
    by(browser, "example").click()
    assert by(browser, "cancel").is_displayed()
    wait(browser, lambda: status(browser).startswith("Done"))
    assert not by(browser, "cancel").is_displayed()
    rows = browser.find_elements(By.CSS_SELECTOR, "#files li")
    chosen = [
        (
            row.find_element(By.CLASS_NAME, "name").text,
            Select(row.find_element(By.TAG_NAME, "select")).first_selected_option.text,
        )
        for row in rows
    ]
    assert chosen == list(zip(FILES, (NAMES[each] for each in ("flair", *SHORT)), strict=True))
    assert by(browser, "volume").text.endswith(" mL")
    assert by(browser, "of").text == "of 24"
    assert browser.find_element(By.TAG_NAME, "figcaption").text.startswith("Slice ")


def test_the_threshold_updates_the_result_and_keys_work(browser: webdriver.Chrome) -> None:
    by(browser, "example").click()
    wait(browser, lambda: status(browser).startswith("Done"))
    volumes = []
    for threshold in (0.05, 0.5, 0.95):
        set_threshold(browser, threshold)
        volumes.append(float(by(browser, "volume").text.removesuffix(" mL")))
    assert volumes[0] > volumes[-1]
    slider = browser.find_element(By.CSS_SELECTOR, ".card [type=range]")
    slider.send_keys(Keys.HOME)
    assert browser.find_element(By.TAG_NAME, "figcaption").text.startswith("Slice 1 of 24.")
    scan = browser.find_element(By.CSS_SELECTOR, ".scan img")
    seen = set()
    for key in "123":
        slider.send_keys(key)
        seen.add(scan.get_attribute("src"))
    assert len(seen) == 3
    fill = browser.find_element(By.CSS_SELECTOR, ".over .right")
    assert fill.value_of_css_property("display") == "none"
    slider.send_keys("f")
    assert fill.value_of_css_property("display") != "none"


def unchanged(image: Nifti1Image) -> Nifti1Image:
    return image


def reoriented(image: Nifti1Image) -> Nifti1Image:
    """Store the volume with its axes in another order, two of them reversed."""
    target = nibabel.orientations.axcodes2ornt(("S", "L", "A"))
    current = nibabel.orientations.io_orientation(image.affine)
    found: Nifti1Image = image.as_reoriented(nibabel.orientations.ornt_transform(current, target))
    return found


def oblique(image: Nifti1Image) -> Nifti1Image:
    """Tilt the volume by 20° in its header."""
    angle = np.radians(20)
    tilt = np.eye(4)
    tilt[1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return Nifti1Image(np.asarray(image.dataobj), tilt @ image.affine)


def oblong_pixels_by_qform(image: Nifti1Image) -> Nifti1Image:
    """Crop the volume and make its pixels not square; only the qform has its position."""
    affine = image.affine @ np.diag([1, 1, 1, 1.0])
    affine[:, 0] *= 1.5
    found = Nifti1Image(np.asarray(image.dataobj)[:, 10:120], affine)
    found.set_sform(None, code="unknown")
    found.set_qform(affine, code="scanner")
    return found


def finer(image: Nifti1Image) -> Nifti1Image:
    """Store the volume with half the slice spacing: 2.5 mm."""
    values = np.repeat(np.asarray(image.dataobj), 2, axis=2)
    return Nifti1Image(values, image.affine @ np.diag([1, 1, 0.5, 1.0]))


@pytest.mark.parametrize(
    "change",
    [unchanged, reoriented, oblique, oblong_pixels_by_qform, finer],
    ids=lambda f: f.__name__,
)
def test_the_mask_is_the_same_as_that_of_segment(
    browser: webdriver.Chrome,
    example: Path,
    tmp_path: Path,
    change: Callable[[Nifti1Image], Nifti1Image],
) -> None:
    files = [tmp_path / f"{name}.gz" for name in FILES]
    for name, file in zip(FILES, files, strict=True):
        nibabel.save(change(nibabel.load(example / name)), file)
    choose(browser, *files)
    outline(browser)
    found = saved(browser, tmp_path)
    assert_same_mask(found, by_segment(tmp_path, *files))
    scan = nibabel.load(files[0]).header
    for code in ("sform_code", "qform_code"):
        assert int(found.header[code]) == int(scan[code])


def test_sequences_may_be_missing_or_on_another_grid(
    browser: webdriver.Chrome, example: Path, tmp_path: Path
) -> None:
    files = [tmp_path / name for name in FILES[:2]]
    nibabel.save(nibabel.load(example / FILES[0]), files[0])
    nibabel.save(oblique(reoriented(nibabel.load(example / FILES[1]))), files[1])
    choose(browser, *files)
    outline(browser)
    warnings = by(browser, "warnings").text
    assert "post-contrast T1" in warnings
    assert_same_mask(saved(browser, tmp_path), by_segment(tmp_path, *files))
    summary = json.loads((tmp_path / "out/result.json").read_text())
    assert warnings.splitlines() == summary["warnings"]


@pytest.mark.skipif("LGG_ARCHIVE" not in os.environ, reason="no real data at LGG_ARCHIVE")
def test_the_mask_of_a_real_patient_is_the_same_as_that_of_segment(
    browser: webdriver.Chrome, tmp_path: Path
) -> None:
    from PIL import Image

    folder = sorted(Path(os.environ["LGG_ARCHIVE"]).glob("TCGA_*"))[7]
    slices = [path for path in folder.glob("*.tif") if not path.stem.endswith("_mask")]
    slices.sort(key=lambda path: int(path.stem.rpartition("_")[2]))
    volume = np.stack([np.asarray(Image.open(path)) for path in slices]).transpose(2, 1, 0, 3)
    files = [tmp_path / name for name in FILES]
    for channel, file in zip((1, 0, 2), files, strict=True):
        nibabel.save(Nifti1Image(volume[..., channel], np.diag([-0.9, -0.9, 5, 1])), file)
    choose(browser, *files)
    outline(browser)
    assert_same_mask(saved(browser, tmp_path), by_segment(tmp_path, *files))


def test_wrong_files_give_a_message(
    browser: webdriver.Chrome, example: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no scan")
    choose(browser, tmp_path / "notes.txt")
    assert "notes.txt" in status(browser)
    assert not by(browser, "chosen").is_displayed()
    (tmp_path / "scan.nii").write_bytes((example / FILES[0]).read_bytes()[:5000])
    choose(browser, tmp_path / "scan.nii")  # a single file is assumed to be FLAIR
    assert status(browser) == "Ready."
    by(browser, "segment").click()
    wait(browser, lambda: status(browser).startswith("scan.nii: damaged"))
    assert not by(browser, "result").is_displayed()
    choose(browser, example / FILES[0])
    assert status(browser).startswith("Two files are FLAIR")
    assert not by(browser, "segment").is_enabled()
    first = browser.find_element(By.CSS_SELECTOR, "#files select")
    Select(first).select_by_visible_text("not used")
    assert status(browser) == "Ready."
    outline(browser)  # works after an error
    browser.find_element(By.CSS_SELECTOR, "#files li:nth-child(2) button").click()
    assert "FLAIR" in status(browser)
    assert not by(browser, "segment").is_enabled()
    assert not by(browser, "result").is_displayed()


def test_an_unreadable_sequence_other_than_flair_is_a_warning(
    browser: webdriver.Chrome, example: Path, tmp_path: Path
) -> None:
    (tmp_path / "t1.nii").write_bytes((example / FILES[1]).read_bytes()[:5000])
    choose(browser, example / FILES[0], tmp_path / "t1.nii")
    outline(browser)
    first, *_ = by(browser, "warnings").text.splitlines()
    assert first.startswith("pre-contrast T1")
    assert "t1.nii: damaged" in first


def test_a_single_file_named_as_another_sequence_is_not_assumed_to_be_flair(
    browser: webdriver.Chrome, example: Path, tmp_path: Path
) -> None:
    (tmp_path / "patient_t2.nii").write_bytes((example / FILES[0]).read_bytes())
    choose(browser, tmp_path / "patient_t2.nii")
    assert "FLAIR" in status(browser)
    assert not by(browser, "segment").is_enabled()


def test_a_segmentation_can_be_canceled_and_started_again(browser: webdriver.Chrome) -> None:
    by(browser, "example").click()
    wait(browser, lambda: " of 24 " in by(browser, "done").text)
    for control in browser.find_elements(By.CSS_SELECTOR, "#chosen select, #chosen button"):
        assert not control.is_enabled()
    by(browser, "cancel").click()
    assert status(browser) == "Canceled."
    assert browser.switch_to.active_element.get_attribute("id") == "segment"
    assert not by(browser, "result").is_displayed()
    outline(browser)
    assert by(browser, "result").is_displayed()


def test_files_can_be_dropped(browser: webdriver.Chrome) -> None:
    box = by(browser, "drop").rect
    for kind in ("dragover", "drop"):
        browser.execute_script(
            """
            const files = new DataTransfer();
            for (const name of ["a_flair.nii", "a_flair.json"])
              files.items.add(new File(["x"], name));
            document.body.dispatchEvent(
              new DragEvent(arguments[0], {bubbles: true, cancelable: true, dataTransfer: files}));
            """,
            kind,
        )
        if kind == "dragover":
            assert by(browser, "drop").rect == box
    assert browser.find_element(By.CSS_SELECTOR, "#files .name").text == "a_flair.nii"
    assert "a_flair.json" in status(browser)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_a_phone(browser: webdriver.Chrome, page: Path, scheme: str) -> None:
    show(browser, page, width=390, scheme=scheme)
    by(browser, "example").click()
    wait(browser, lambda: status(browser).startswith("Done"))
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    unnamed = browser.execute_script("""
        return [...document.querySelectorAll("button, input:not([type=file]), select")].filter(
          (each) => !each.labels?.length && !each.ariaLabel
            && !(each.matches("button") && each.textContent.trim()));""")
    assert unnamed == []


def computed(module: str, expression: str) -> Any:
    """Return the value of a JavaScript expression, in which `m` is a module of the page."""
    script = f"""
        import * as m from {json.dumps(str(ROOT / "src/browser" / module))};
        console.log(JSON.stringify({expression}));"""
    done = subprocess.run(
        ["node", "--input-type=module"], input=script, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def test_sequences_are_recognized_as_by_segment() -> None:
    names = [name for group in NAMES_BY_SEQUENCE.values() for name in group]
    words = json.dumps(build_page.words())
    found = computed(
        "sequences.js", f"{json.dumps(names)}.map((name) => m.sequenceOf(name, {words}))"
    )
    expected = [sequence_of(name).sequence for name in names]  # the page does not use T2
    assert [each or None for each in found] == [None if each == "t2" else each for each in expected]


@pytest.mark.parametrize(
    ("height", "width", "image_size"),
    [
        (256, 256, 128),
        (448, 448, 128),
        (400, 300, 128),
        (240, 240, 128),
        (90, 128, 128),
        (50, 40, 64),
    ],
)
def test_slices_are_fitted_as_by_segment(height: int, width: int, image_size: int) -> None:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    array = f"Uint8Array.from({pixels.ravel().tolist()})"
    found = computed("fitting.js", f"[...m.fit({array}, {height}, {width}, 3, {image_size})]")
    assert found == fit(pixels, image_size).ravel().tolist()


def test_volumes_are_turned_as_by_segment() -> None:
    """Random rotations, also those in which no axis is near one of the body's axes."""
    affines = np.tile(np.eye(4), (500, 1, 1))
    affines[:, :3, :3] = Rotation.random(500, random_state=1).as_matrix() * [0.9, 0.9, 5]
    found = computed("geometry.js", f"{json.dumps(affines.tolist())}.map(m.axialOf)")
    expected = [Axial.of(affine) for affine in affines]
    assert [(tuple(each["axes"]), tuple(each["flips"])) for each in found] == expected


@pytest.mark.parametrize("kind", ["Int16Array", "Uint16Array", "Float32Array", "Float64Array"])
def test_tissue_is_measured_as_by_segment(kind: str) -> None:
    values = np.random.default_rng(2).gamma(2, 100, 5000).round(1 if kind.startswith("F") else 0)
    values[:1000] = 0
    expression = f"m.tissueStatistics(m.distinct({kind}.from({values.tolist()}), 500))"
    found = computed("intensity.js", expression)
    dtype = kind.removesuffix("Array").lower()
    padded = np.append(values, np.zeros(500)).astype(dtype)
    expected = tissue_statistics(*distinct(padded))
    for name in ("mean", "std", "median", "p99"):
        assert found[name] == pytest.approx(expected[f"tissue_{name}"], rel=1e-6)
