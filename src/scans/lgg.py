"""Check that a copy of the LGG MRI Segmentation data set is the published one.

Mateusz Buda, Ashirbani Saha, Maciej A. Mazurowski: Association of genomic subtypes of lower-grade
gliomas with shape features automatically extracted by a deep learning algorithm. Computers in
Biology and Medicine 109 (2019). Images from The Cancer Imaging Archive; CC BY-NC-SA 4.0.
"""

import hashlib
from pathlib import Path

KAGGLE_HANDLE = "mateuszbuda/lgg-mri-segmentation/versions/2"
N_PATIENTS = 110
N_FILES = 7858
SHA256 = "f7fdbe8f7e77ad46de4a4cce2a491d9ec8385231b524c36e360525ae22b8dfab"


def content_digest(root: Path) -> str:
    """Return one SHA-256 over the sorted SHA-256 sums and paths of all files, with data.csv."""
    digest = hashlib.sha256()
    places = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    for place, path in sorted(places.items()):
        file_digest = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{file_digest}  {place}\n".encode())
    return digest.hexdigest()


def differences(root: Path) -> list[str]:
    """Return how the data set in `root` differs from the published one; empty if it does not."""
    n_patients = sum(path.is_dir() for path in root.iterdir())
    n_files = len(list(root.glob("*/*.tif")))
    problems = [
        f"{found} {noun} instead of {expected}"
        for noun, found, expected in (
            ("patients", n_patients, N_PATIENTS),
            ("TIFF files", n_files, N_FILES),
        )
        if found != expected
    ]
    if not problems and content_digest(root) != SHA256:
        problems.append(f"file names or contents differ: their SHA-256 is not {SHA256}")
    return problems
