"""The sections of params.yaml that say which scans there are and how they are split."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.params import Section
from pipeline.refusals import refuse
from scans.sequences import channels
from scans.tiff import SEQUENCES

Layout = Literal["slices", "brats", "bids", "nnunet"]
Sequence = Literal["pre_contrast", "flair", "post_contrast", "t2"]


class AcquireParams(Section):
    """Which data set, and what is read of it."""

    dataset: Annotated[str, Field(min_length=1)]
    layout: Literal["auto"] | Layout
    labels: Literal["all"] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    sequences: Annotated[list[Sequence], Field(min_length=1, max_length=3)]

    @property
    def channels(self) -> tuple[str, str, str]:
        """Return which sequence each channel of a slice has."""
        return channels(self.sequences)

    def check_unread(self, dataset: str) -> None:
        """Refuse values that are meant for NIfTI where a data set has its own form."""
        problems = []
        if self.channels != SEQUENCES:
            problems.append(f"acquire.sequences is {self.sequences}")
        if self.labels != "all":
            problems.append(f"acquire.labels is {self.labels}")
        if problems:
            own = (
                f"the channels of {dataset} are {', '.join(SEQUENCES)}, its masks are of 0 and 255"
            )
            refuse(problems, f"These params are for NIfTI: {own}.")

    @field_validator("sequences")
    @classmethod
    def check_repeats(cls, value: list[str]) -> list[str]:
        """Refuse a sequence that is named twice."""
        if len(set(value)) < len(value):
            raise ValueError("names one twice")
        return value


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
