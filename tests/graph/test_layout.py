"""The layout of src/: import rules, lengths of functions and modules, imports at startup."""

import ast
import os
import subprocess
import sys

import pytest
import yaml

from helpers import MODULES, PACKAGES, ROOT, SRC, all_imports, direct_imports

# The other packages that each package may import. Stages and commands may import all of them.
MAY_IMPORT: dict[str, set[str]] = {
    "pipeline": set(),
    "scans": {"pipeline"},
    "scoring": {"pipeline", "scans"},
    "learning": {"pipeline", "scans", "scoring"},
    "exploration": {"pipeline", "scans"},
    "page": {"pipeline", "scans", "scoring"},
    "comparison": {"pipeline", "scans", "scoring"},
    "application": {"pipeline", "scans", "page"},
}
# Scripts that are not stages of the graph.
COMMANDS = {"build_page", "demo", "segment", "verify", "write_phantom"}
BROWSER = "browser"  # JavaScript
LONGEST_FUNCTION, LONGEST_MODULE = 60, 300  # lines


def test_src_contains_only_scripts_and_packages() -> None:
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    entries = {path.name for path in SRC.iterdir() if path.name != "__pycache__"}
    assert entries == {f"{script}.py" for script in stages | COMMANDS} | MAY_IMPORT.keys() | {
        BROWSER
    }


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_what_the_table_allows(package: str) -> None:
    modules = [module for module in MODULES if module.startswith(f"{package}.")]
    assert modules
    imported = {name for module in modules for name in direct_imports(module)}
    assert {name.partition(".")[0] for name in imported} <= MAY_IMPORT[package] | {package}


def test_no_script_is_imported() -> None:
    for module in MODULES:
        assert all("." in name for name in direct_imports(module)), module


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_an_init_file_is_only_a_docstring_that_names_what_the_package_may_import(
    package: str,
) -> None:
    """The names stand in backticks after the docstring's last "import"."""
    tree = ast.parse((SRC / package / "__init__.py").read_text())
    assert len(tree.body) == 1
    rule = (ast.get_docstring(tree) or "").rpartition("import")[2]
    assert {name for name in MAY_IMPORT if f"`{name}`" in rule} == MAY_IMPORT[package]


@pytest.mark.parametrize("module", MODULES)
def test_functions_and_modules_are_short(module: str) -> None:
    text = MODULES[module].read_text()
    assert len(text.splitlines()) <= LONGEST_MODULE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno + 1 <= LONGEST_FUNCTION, node.name


# The heavy packages that a script may load at startup. Matplotlib, kagglehub and DVC are imported
# in the functions that use them.
MAY_LOAD: dict[str, set[str]] = {
    "acquire": set(),
    "restructure": set(),
    "build_manifest": {"pandas"},
    "measure_tissue": {"pandas"},
    "explore": {"pandas", "scipy"},
    "split": {"pandas", "scipy", "sklearn"},
    "evaluate": {"pandas", "scipy"},
    "report": {"pandas", "scipy", "altair"},
    "predict": {"pandas", "scipy", "torch", "timm", "lightning_fabric"},
    "segment": {"scipy"},
    "verify": set(),
    "build_page": set(),
}
HEAVY = {
    *("albumentations", "altair", "dvc", "highdicom", "kagglehub", "lightning_fabric"),
    *("matplotlib", "monai", "pandas", "scipy", "sklearn", "timm", "torch"),
}


SCRIPTS = sorted(module for module in MODULES if "." not in module)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_finds_the_packages_of_src_and_loads_only_allowed_heavy_ones(script: str) -> None:
    """PYTHONSAFEPATH keeps a script's folder off the path; the script has to add it."""
    code = f"import runpy, sys; runpy.run_path({str(MODULES[script])!r}, run_name='a script'); "
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    if script in MAY_LOAD:
        assert set(done.stdout.split()) & HEAVY <= MAY_LOAD[script]


# PyPI names of packages that are imported under another name.
PYPI_NAMES = {
    "PIL": "pillow", "cv2": "opencv-python-headless", "lightning_fabric": "lightning-fabric",
    "segmentation_models_pytorch": "segmentation-models-pytorch", "sklearn": "scikit-learn",
    "typing_extensions": "typing-extensions", "vl_convert": "vl-convert-python", "yaml": "pyyaml",
}  # fmt: skip


def imported_packages(*scripts: str) -> set[str]:
    """Return the PyPI names of the packages that scripts import, at their top or in functions."""
    names = set()
    for module in {name for script in scripts for name in all_imports(script)}:
        for node in ast.walk(ast.parse(MODULES[module].read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    external = names - set(sys.stdlib_module_names) - MAY_IMPORT.keys()
    return {PYPI_NAMES.get(name, name) for name in external}


def pinned_packages(file: str) -> set[str]:
    """Return the packages that a requirements file pins."""
    return {
        line.partition("==")[0] for line in (ROOT / file).read_text().splitlines() if "==" in line
    }


OPTIONAL = pinned_packages("requirements-cluster.txt")


def test_segment_imports_only_packages_of_requirements_segment_txt() -> None:
    found = imported_packages("segment") - OPTIONAL - {"pandas"}  # pandas only for type checking
    assert found <= pinned_packages("requirements-segment.txt")
    assert "numpy" in found


def test_all_other_scripts_import_only_packages_of_requirements_txt() -> None:
    found = imported_packages(*(name for name in SCRIPTS if name != "segment"))
    assert found - OPTIONAL <= pinned_packages("requirements.txt")
    assert {"nibabel", "torch"} <= found
