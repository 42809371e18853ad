"""The sections of params.yaml that define the data set and its split."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.params import Section
from pipeline.refusals import refuse
from scans.sequences import channels
from scans.tiff import SEQUENCES

Layout = Literal["slices", "brats", "bids", "nnunet"]
Sequence = Literal["pre_contrast", "flair", "post_contrast", "t2"]


class AcquireParams(Section):
    """Which data set is used, and which of its sequences and labels."""

    dataset: Annotated[str, Field(min_length=1)]
    layout: Literal["auto"] | Layout
    labels: Literal["all"] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)]
    sequences: Annotated[list[Sequence], Field(min_length=1, max_length=3)]

    @property
    def channels(self) -> tuple[str, str, str]:
        """Return the sequence in each channel of a slice."""
        return channels(self.sequences)

    def check_nifti_params(self, dataset: str) -> None:
        """Raise an error if params for NIfTI are set; `dataset` names the TIFF data set in use."""
        problems = []
        if self.channels != SEQUENCES:
            problems.append(f"acquire.sequences is {self.sequences}")
        if self.labels != "all":
            problems.append(f"acquire.labels is {self.labels}")
        if problems:
            refuse(
                problems,
                f"These params apply only to NIfTI. The channels of {dataset} are "
                f"{', '.join(SEQUENCES)}; its masks contain 0 and 255.",
            )

    @field_validator("sequences")
    @classmethod
    def check_repeats(cls, value: list[str]) -> list[str]:
        """Raise an error if a sequence is listed twice."""
        if len(set(value)) < len(value):
            raise ValueError("lists a sequence twice")
        return value


class PhantomParams(Section):
    """The size of the synthetic data set."""

    patients: Annotated[int, Field(ge=2, le=9999)]
    image_size: Annotated[int, Field(ge=32, le=4096)]  # pixels along each side


class SplitParams(Section):
    """How patients are assigned to training, validation and test."""

    by: Literal["patient", "institution", "slice"]
    folds: Annotated[int, Field(ge=2)]
    test_fold: Annotated[int, Field(ge=0)]
    inner_fold: Annotated[int, Field(ge=0)] | Literal["none"]
    val_fraction: Annotated[float, Field(ge=0, lt=1)]
