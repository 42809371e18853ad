"""The sections of params.yaml for the network, training and prediction."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.params import Section
from scans.intensity import Normalize

Device = Literal["auto", "cpu", "cuda", "mps"]
Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]
Threads = Annotated[int, Field(ge=1)] | Literal["auto"]  # auto: one per core
Workers = Annotated[int, Field(ge=0)] | Literal["auto"]  # auto: one per core
Loss = Literal["bce_dice", "bce", "dice", "focal"]
Schedule = Literal["one_cycle", "cosine", "constant"]
ImageSize = Annotated[int, Field(ge=32, le=4096)]  # pixels of the longer side of a slice
Fraction = Annotated[float, Field(ge=0, lt=1)]


class EncoderParams(Section):
    """The encoder, the source of its weights, and whether it is frozen."""

    name: str
    weights: str
    frozen: bool


class AugmentParams(Section):
    """The augmentation of train slices; learning/augmentation.py explains each value."""

    flip: bool
    rotate: Annotated[float, Field(ge=0, le=180)]
    scale: Fraction
    translate: Fraction
    brightness: Fraction
    contrast: Fraction
    gamma: Fraction
    gain: Fraction
    missing: Fraction


class TrainParams(Section):
    """The hyperparameters of training."""

    epochs: Annotated[int, Field(ge=1)]
    image_size: ImageSize
    context: Literal[0, 1]
    batch_size: Annotated[int, Field(ge=2)]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    schedule: Schedule
    loss: Loss
    average: Fraction
    keep: Literal["last", "best"]
    normalize: Normalize
    abnormal_share: Annotated[float, Field(gt=0, lt=1)] | Literal["natural"]
    repeat: Annotated[int, Field(ge=0)]
    encoder_rate: Annotated[float, Field(gt=0)]
    deterministic: bool
    augment: AugmentParams


class PredictParams(Section):
    """How the trained network predicts."""

    batch_size: Annotated[int, Field(ge=1)]
    flips: bool


class ComputeParams(Section):
    """Device, precision and parallelism of computations.

    Workers are processes that prepare batches for a GPU; for a CPU, a thread does this. DVC does
    not track `workers`, because it does not change any output.
    """

    device: Device
    precision: Precision
    threads: Threads
    compile: bool
    workers: Workers
