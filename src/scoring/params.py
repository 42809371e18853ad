"""The section of params.yaml with the settings for scoring predictions."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params import Section


class EvaluateParams(Section):
    """Settings for turning probabilities into masks, and for the bootstrap."""

    threshold: Annotated[float, Field(gt=0, lt=1)] | Literal["val"]
    component_share: Annotated[float, Field(ge=0, le=1)]
    resamples: Annotated[int, Field(ge=100)]
