"""The sections of params.yaml that say which scans there are and how they are split."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params import Section


class AcquireParams(Section):
    """Which data set."""

    dataset: Annotated[str, Field(min_length=1)]


class PhantomParams(Section):
    """The size of the synthetic data set."""

    patients: Annotated[int, Field(ge=2, le=9999)]
    image_size: Annotated[int, Field(ge=32, le=4096)]  # pixels along each side


class SplitParams(Section):
    """Who is trained on, validated on and tested."""

    by: Literal["patient", "institution", "slice"]
    folds: Annotated[int, Field(ge=2)]
    test_fold: Annotated[int, Field(ge=0)]
    inner_fold: Annotated[int, Field(ge=0)] | Literal["none"]
    val_fraction: Annotated[float, Field(ge=0, lt=1)]
