"""Start-up: a stage imports what it needs. Heavy packages are slow to import, some by seconds."""

import subprocess
import sys

import pytest

from conftest import MODULES

# The heavy packages that a stage may load at its start, of those that src/ imports.
# Matplotlib, kagglehub and DVC are imported where they are used, which is late or seldom.
MAY_IMPORT: dict[str, set[str]] = {
    "acquire": set(),
    "restructure": set(),
    "build_manifest": {"pandas"},
    "measure_tissue": {"pandas"},
    "explore": {"pandas", "scipy"},
    "split": {"pandas", "scipy", "sklearn"},
    "evaluate": {"pandas", "scipy"},
    "report": {"pandas", "scipy", "altair"},
    "predict": {"pandas", "scipy", "torch", "timm", "lightning_fabric"},
}
HEAVY = {
    *("albumentations", "altair", "dvc", "kagglehub", "lightning_fabric", "matplotlib", "monai"),
    *("pandas", "scipy", "sklearn", "timm", "torch"),
}


@pytest.mark.parametrize("stage", MAY_IMPORT)
def test_a_stage_loads_no_heavy_package_that_it_does_not_need(stage: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(MODULES[stage].parent)!r}); import {stage}; "
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & HEAVY <= MAY_IMPORT[stage]
