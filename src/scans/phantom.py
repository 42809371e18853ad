"""Generate a synthetic data set in the layout of the real one, for demonstration and tests.

It poses the same task as the LGG MRI Segmentation data: a textured brain in three sequences,
lesions that are bright in FLAIR, dark before contrast and continue through neighboring slices, and
distractors that are as bright in FLAIR but are not lesions. It does not model anatomy, and scores
on it say nothing about patients.
"""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from pipeline.parallel import in_parallel

Floats = NDArray[np.float64]
Grid = tuple[Floats, Floats, Floats]

INSTITUTIONS = ("P1", "P2", "P3", "P4")
MISSING = {0: ("pre_contrast", "post_contrast"), 1: ("post_contrast",)}  # by patient's index
ABNORMAL_FRACTION = 0.35  # of a patient's slices
MIN_SLICES, MAX_SLICES = 14, 26  # per patient

# The columns of the real data.csv and the highest code in each. Codes start at 1,
# except death01 at 0 and the age at 20.
CLINICAL_CODES = {
    "RNASeqCluster": 4,
    "MethylationCluster": 5,
    "miRNACluster": 4,
    "CNCluster": 3,
    "RPPACluster": 4,
    "OncosignCluster": 3,
    "COCCluster": 3,
    "histological_type": 3,
    "neoplasm_histologic_grade": 2,
    "tumor_tissue_site": 1,
    "laterality": 3,
    "tumor_location": 6,
    "gender": 2,
    "age_at_initial_pathologic": 75,
    "race": 3,
    "ethnicity": 2,
    "death01": 1,
}


def patient_id(index: int) -> str:
    """Return an id that cannot be mistaken for a real one, such as PHANTOM_P2_0002_20000101."""
    return f"PHANTOM_{INSTITUTIONS[index % len(INSTITUTIONS)]}_{index + 1:04d}_20000101"


def grid(n_slices: int, image_size: int) -> Grid:
    """Return z, y and x in [-1, 1], to be broadcast to (D, H, W)."""
    z = np.linspace(-1, 1, n_slices).reshape(-1, 1, 1)
    y = np.linspace(-1, 1, image_size).reshape(1, -1, 1)
    return z, y, y.reshape(1, 1, -1)


def texture(rng: np.random.Generator, shape: tuple[int, int, int], scale: float) -> Floats:
    """Return smooth noise with mean 0 and standard deviation 1; `scale` is in pixels of a slice."""
    noise = gaussian_filter(rng.standard_normal(shape), (1.0, scale, scale))
    return np.asarray((noise - noise.mean()) / noise.std())


def ellipsoid_distance(coordinates: Grid, center: Floats, radii: Floats) -> Floats:
    """Return the distance from `center` in units of `radii`, (D, H, W): below 1 inside."""
    z, y, x = (
        (axis - middle) / radius
        for axis, middle, radius in zip(coordinates, center, radii, strict=True)
    )
    return np.asarray(np.sqrt(z**2 + y**2 + x**2))


def lesion_center(rng: np.random.Generator, z: float) -> Floats:
    """Return a random point well inside the brain at height `z`, away from the ventricles."""
    angle, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.28, 0.42) * np.sqrt(1 - z**2)
    return np.array([z, 1.2 * reach * np.sin(angle), reach * np.cos(angle)])


def lesion_mask(
    rng: np.random.Generator, coordinates: Grid, brain: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return an irregular blob, (D, H, W), in a contiguous 35 % of the slices."""
    n_slices, image_size, _ = brain.shape
    n_abnormal = max(1, round(ABNORMAL_FRACTION * n_slices))
    first = int(rng.integers(n_slices // 6, n_slices - n_slices // 6 - n_abnormal + 1))
    z = coordinates[0].ravel()
    middle = (z[first] + z[first + n_abnormal - 1]) / 2
    height = (n_abnormal + 1) / (n_slices - 1)
    center, radius = lesion_center(rng, middle), rng.uniform(0.14, 0.30)
    radii = np.array([height, radius * rng.uniform(0.8, 1.25), radius])
    ragged = 0.12 * texture(rng, brain.shape, image_size / 24)
    mask = (ellipsoid_distance(coordinates, center, radii) + ragged < 1) & brain
    # A core in every slice of the run keeps it abnormal even where the blob is thin.
    core = ellipsoid_distance(coordinates, center, np.array([1e9, 0.06, 0.06])) < 1
    mask |= core & brain
    mask[:first] = mask[first + n_abnormal :] = False
    return np.asarray(mask)


def distractor_mask(
    rng: np.random.Generator, coordinates: Grid, brain: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return two to four lesion-sized blobs that are not lesions, (D, H, W)."""
    mask = np.zeros(brain.shape, dtype=np.bool_)
    for _ in range(int(rng.integers(2, 5))):
        center = lesion_center(rng, rng.uniform(-0.7, 0.7))
        radii = np.array([rng.uniform(0.1, 0.3), *rng.uniform(0.07, 0.18, size=2)])
        mask |= ellipsoid_distance(coordinates, center, radii) < 1
    return np.asarray(mask & brain)


def make_volume(rng: np.random.Generator, image_size: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Return a patient's sequences, (D, H, W, 3) in [0, 1], and the lesion mask, (D, H, W)."""
    n_slices = int(rng.integers(MIN_SLICES, MAX_SLICES + 1))
    shape = (n_slices, image_size, image_size)
    coordinates = grid(n_slices, image_size)
    head = np.array([1.15, rng.uniform(0.80, 0.88), rng.uniform(0.66, 0.74)])
    head_distance = ellipsoid_distance(coordinates, np.zeros(3), head)
    brain = head_distance < 0.9
    scalp = (head_distance > 0.97) & (head_distance < 1.04)
    ventricles = ellipsoid_distance(coordinates, np.zeros(3), np.array([0.5, 0.26, 0.12])) < 1
    lesion = lesion_mask(rng, coordinates, brain & ~ventricles)
    distractor = distractor_mask(rng, coordinates, brain & ~ventricles) & ~lesion
    matter = texture(rng, shape, image_size / 20)
    grain = [0.02 * rng.standard_normal(shape) for _ in range(3)]

    pre = 0.42 + 0.05 * matter
    flair = 0.40 - 0.04 * matter
    post = 0.45 + 0.05 * matter
    for sequence, level in ((pre, 0.15), (flair, 0.12), (post, 0.17)):
        sequence[ventricles] = level
    contrast = rng.uniform(0.14, 0.32)
    edge = gaussian_filter(lesion.astype(np.float64), (0, image_size / 160, image_size / 160))
    pre -= 0.5 * contrast * edge
    flair += contrast * edge
    post += rng.uniform(-0.5, 0.6) * contrast * edge
    bright = rng.uniform(0.18, 0.38) * distractor
    volume = np.stack([pre + bright, flair + bright, post + bright], axis=-1)
    volume[~brain] = 0
    volume[scalp] = rng.uniform(0.5, 0.8)
    volume *= rng.uniform(0.8, 1.2)
    volume += np.stack(grain, axis=-1)
    return volume.clip(0, 1), lesion


def draw_patient(
    index: int, *, seed: int, image_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Return a patient's slices (D, H, W, 3) and lesion mask (D, H, W).

    FLAIR replaces a missing sequence, as in the real data.
    """
    rng = np.random.default_rng([seed, index])
    volume, lesion = make_volume(rng, image_size)
    for channel, sequence in ((0, "pre_contrast"), (2, "post_contrast")):
        if sequence in MISSING.get(index, ()):
            volume[..., channel] = volume[..., 1]
    return (volume * 255).round().astype(np.uint8), lesion


def write_patient(index: int, folder: Path, *, seed: int, image_size: int) -> None:
    """Write a patient's slices and masks."""
    name = patient_id(index)
    (folder / name).mkdir(parents=True)
    slices = zip(*draw_patient(index, seed=seed, image_size=image_size), strict=True)
    for number, (scan, mask) in enumerate(slices, start=1):
        stem = folder / name / f"{name}_{number}"
        Image.fromarray(scan).save(f"{stem}.tif")
        Image.fromarray(mask.astype(np.uint8) * 255).save(f"{stem}_mask.tif")


def clinical_table(rng: np.random.Generator, patients: int) -> pd.DataFrame:
    """Return random codes in the columns of the real data.csv; the last patient's are missing."""
    table = pd.DataFrame({"Patient": [patient_id(i).rpartition("_")[0] for i in range(patients)]})
    for column, highest in CLINICAL_CODES.items():
        lowest = {"age_at_initial_pathologic": 20, "death01": 0}.get(column, 1)
        codes = pd.Series(rng.integers(lowest, highest, endpoint=True, size=patients))
        table[column] = codes.astype("Int64")
    table.loc[patients - 1, list(CLINICAL_CODES)] = pd.NA
    return table


def write_phantom(folder: Path, *, seed: int, patients: int, image_size: int) -> None:
    """Write data.csv and `patients` folders of slices of `image_size` x `image_size` pixels.

    One patient has only FLAIR and another has no post-contrast sequence. The same seed gives the
    same bytes, and a patient's slices do not depend on the number of patients.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write = partial(write_patient, folder=folder, seed=seed, image_size=image_size)
    in_parallel(write, range(patients), "phantom")
    table = clinical_table(np.random.default_rng([seed, patients]), patients)
    table.to_csv(folder / "data.csv", index=False)
