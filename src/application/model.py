"""The released model: an ONNX file whose metadata says how to use it."""

import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.outputs import file_sha256
from pipeline.parallel import n_threads
from pipeline.refusals import Refusal
from scans.sequences import MAIN, NAMES, missing_phrase

CHUNK = 16  # slices computed at a time
HINT = "`git restore models` restores the released one."


class ReleasedModel:
    """The network in an ONNX file, and the description in its metadata."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise Refusal(f"{path}: no such model. {HINT}")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        options.intra_op_num_threads = n_threads()
        # Spinning threads would slow down other programs on the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self.session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
            properties = self.session.get_modelmeta().custom_metadata_map
            self.description: dict[str, Any] = json.loads(properties["model"])
        except Exception as error:  # onnxruntime raises many kinds
            reason = " ".join(str(error).split())
            raise Refusal(f"{path}: not a model of this project ({reason}). {HINT}") from None
        self.sha256 = file_sha256(path)
        self.input = self.description["input"]
        self.check_sequences()

    def check_sequences(self) -> None:
        """Raise an error if the model's main sequence is not FLAIR."""
        if (main := self.sequences[MAIN]) != "flair":
            raise Refusal(
                f"the model's main sequence is {NAMES[main]}; use a model whose main sequence is "
                "FLAIR"
            )

    @property
    def sequences(self) -> tuple[str, str, str]:
        """Return the sequence of each channel of a slice."""
        first, main, last = self.input["sequences"]
        return first, main, last

    def probabilities(
        self, slices: NDArray[np.uint8], on_progress: Callable[[int], object]
    ) -> NDArray[np.float32]:
        """Return the probability of tumor, (N, S, S), of consecutive slices (N, S, S, 3).

        Slices are computed in chunks with one more slice at each end, because the network sees a
        slice's neighbors. `on_progress` is called with the number of slices just computed.
        """
        found = []
        for begin in range(0, len(slices), CHUNK):
            end = min(begin + CHUNK, len(slices))
            first = max(begin - 1, 0)
            [output] = self.session.run(None, {self.input["name"]: slices[first : end + 1]})
            found.append(output[begin - first : end - first])
            on_progress(end - begin)
        return np.concatenate(found)

    def stride(self, spacing: float) -> int:
        """Return the step from a slice to its neighbor, if slices are `spacing` mm apart."""
        return max(1, round(float(self.input["slice_spacing_mm"]) / spacing))

    def score_without(self, missing: Sequence[str]) -> str:
        """Return the test score of patients without these sequences, as a phrase."""
        phrase = missing_phrase(missing)
        for group in self.description["test"]["by_missing_sequence"]:
            if group["missing"] == phrase:
                n = group["n_patients"]
                patients = f"{n} test patients" if n > 1 else "one test patient"
                mean = f"Dice {group['dice_patient_mean']:.3f}"
                return f"{mean} in {patients} without {phrase}"
        return f"accuracy unknown: no test patient lacked {phrase}"


@lru_cache
def cached_model(path: Path) -> ReleasedModel:
    """Return the model in a file. A process that segments many patients loads it only once."""
    return ReleasedModel(path)
