"""A stage reports an invalid param by name and value before it reads any input."""

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from helpers import RunStage, params

NAN, INFINITY = float("nan"), float("inf")

# Stage, param, value, and part of the message; "" marks an unknown param.
BAD: list[tuple[str, str, Any, str]] = [
    ("acquire", "seed", -1, "greater than or equal to 0"),
    ("acquire", "seed", 2**32, "less than 4294967296"),
    ("acquire", "seed", 1.5, "valid integer"),
    ("acquire", "seed", True, "valid integer"),
    ("acquire", "acquire.dataset", "", "at least 1 character"),
    ("acquire", "acquire.dataset", 7, "valid string"),
    ("acquire", "acquire.data_set", "lgg", ""),
    ("acquire", "phantom.patients", 1, "greater than or equal to 2"),
    ("acquire", "phantom.patients", "ten", "valid integer"),
    ("acquire", "phantom.image_size", 0, "greater than or equal to 32"),
    ("acquire", "phantom.image_size", -1, "greater than or equal to 32"),
    ("split", "split.by", "volume", "'patient', 'institution' or 'slice'"),
    ("split", "split.folds", 1, "greater than or equal to 2"),
    ("split", "split.test_fold", -1, "greater than or equal to 0"),
    ("split", "split.inner_fold", -1, "greater than or equal to 0"),
    ("split", "split.inner_fold", "all", "'none'"),
    ("split", "split.val_fraction", -0.1, "greater than or equal to 0"),
    ("split", "split.val_fraction", 1.0, "less than 1"),
    ("split", "split.val_fraction", NAN, "finite number"),
    ("split", "split.val_fracton", 0.2, ""),
    ("fetch_encoder", "encoder.name", 18, "valid string"),
    ("fetch_encoder", "encoder.weights", None, "valid string"),
    ("train", "train.epochs", 0, "greater than or equal to 1"),
    ("train", "train.epochs", 2.5, "valid integer"),
    ("train", "train.image_size", 0, "greater than or equal to 32"),
    ("train", "train.image_size", -1, "greater than or equal to 32"),
    ("train", "train.image_size", 5000, "less than or equal to 4096"),
    ("train", "train.batch_size", 1, "greater than or equal to 2"),
    ("train", "train.learning_rate", 0.0, "greater than 0"),
    ("train", "train.learning_rate", NAN, "finite number"),
    ("train", "train.learning_rate", INFINITY, "finite number"),
    ("train", "train.learning_rate", "fast", "valid number"),
    ("train", "train.weight_decay", -0.1, "greater than or equal to 0"),
    ("train", "train.schedule", "linear", "'one_cycle', 'cosine' or 'constant'"),
    ("train", "train.loss", "mse", "'bce_dice', 'bce', 'dice' or 'focal'"),
    ("train", "train.normalize", "minmax", "'none', 'percentile', 'median' or 'z_score'"),
    ("train", "train.abnormal_share", 0.0, "greater than 0"),
    ("train", "train.abnormal_share", "half", "'natural'"),
    ("train", "train.repeat", -1, "greater than or equal to 0"),
    ("train", "train.encoder_rate", 0.0, "greater than 0"),
    ("train", "train.deterministic", "yes", "valid boolean"),
    ("train", "train.momentum", 0.9, ""),
    ("train", "train.augment.flip", 1, "valid boolean"),
    ("train", "train.augment.rotate", -5.0, "greater than or equal to 0"),
    ("train", "train.augment.scale", 1.0, "less than 1"),
    ("train", "train.augment.gamma", 1.0, "less than 1"),
    ("train", "train.augment.missing", 1.5, "less than 1"),
    ("train", "train.augment.shear", 0.1, ""),
    ("train", "compute.device", "gpu", "'auto', 'cpu', 'cuda' or 'mps'"),
    ("train", "compute.precision", "fp8", "'auto', '32-true', 'bf16-mixed' or '16-mixed'"),
    ("train", "compute.threads", 0, "greater than or equal to 1"),
    ("train", "compute.workers", -1, "greater than or equal to 0"),
    ("train", "compute.compile", "on", "valid boolean"),
    ("predict", "predict.batch_size", 0, "greater than or equal to 1"),
    ("predict", "predict.flips", "no", "valid boolean"),
    ("evaluate", "evaluate.threshold", 1.5, "less than 1"),
    ("evaluate", "evaluate.threshold", "best", "'val'"),
    ("evaluate", "evaluate.component_share", 1.1, "less than or equal to 1"),
    ("evaluate", "evaluate.resamples", 0, "greater than or equal to"),
    ("export", "export.version", "1", "should match pattern"),
    ("export", "export.field_of_view", 0, "greater than 0"),
    ("report", "report.patients", 2, "greater than or equal to 3"),
]


@pytest.mark.parametrize(("stage", "name", "value", "expected"), BAD)
def test_an_invalid_param_is_an_error_before_any_work(
    run_stage: RunStage, tmp_path: Path, stage: str, name: str, value: Any, expected: str
) -> None:
    """None of the paths exists: a stage that reads an input first would report a missing file."""
    main = import_module(stage).main
    parameters = inspect.signature(main).parameters.values()
    n_paths = sum(parameter.kind is not parameter.KEYWORD_ONLY for parameter in parameters)
    paths = [tmp_path / f"path {number}" for number in range(n_paths)]
    outcome = run_stage(main, paths, **{name.replace(".", "__"): value})
    assert outcome.code == 1
    first, *_ = outcome.error.splitlines()
    if expected:
        assert f"error: param `{name}` is {value!r}: " in outcome.error
        assert expected in outcome.error
    else:
        assert f"error: unknown param `{name}`" in first
    assert "params.yaml or in the -S override" in outcome.error
    assert "Traceback" not in outcome.error
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_the_table_covers_every_section_of_params() -> None:
    assert len(BAD) >= 25
    sections = {name.partition(".")[0] for _, name, _, _ in BAD}
    assert sections == set(params())
