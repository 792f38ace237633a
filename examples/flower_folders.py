"""Photographs of flowers from disk, in the published layout of Oxford 102 Flowers or in one folder for each class.

Not a program. A problem is a ValueError that names the path.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from rich.progress import track
from scipy.io import loadmat

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
TEST = 5  # with class folders, every fifth image of a class is for testing, and one at least

Split = tuple[list[Path], np.ndarray]  # files and their labels


def photographs(folder: Path, size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Training images and labels, test images and labels, and the names of the classes.

    Images are cut to a square around their middle and resized: [count, size, size, 3] in float32 from 0 to 1. Folders
    of class folders are split at random by `seed`; Oxford's split is the published one.
    """
    if not folder.is_dir():
        raise ValueError(f"--data must be a folder of photographs; got {folder}, which is no folder.")
    if any((folder / name).exists() for name in ("imagelabels.mat", "setid.mat")):
        train, test, names = _oxford(folder)
    else:
        train, test, names = _class_folders(folder, seed)
    return _read(train[0], size), train[1], _read(test[0], size), test[1], names


def _class_folders(folder: Path, seed: int) -> tuple[Split, Split, list[str]]:
    """`folder/rose/*.jpg`, `folder/daisy/*.jpg`: a class is called like its folder."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise ValueError(
            f"--data needs a folder for each of two classes at least, or Oxford's imagelabels.mat, setid.mat and jpg/; "
            f"got {len(classes)} folders in {folder}."
        )
    rng = np.random.default_rng(seed)
    files: dict[str, list[Path]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for label, path in enumerate(classes):
        images = sorted(image for image in path.iterdir() if image.suffix.lower() in SUFFIXES)
        if len(images) < 2:
            raise ValueError(
                f"--data needs two images of a class, one to learn from and one to test; got {len(images)} in {path}."
            )
        images = [images[i] for i in rng.permutation(len(images))]
        tests = max(1, len(images) // TEST)
        for name, part in (("test", images[:tests]), ("train", images[tests:])):
            files[name] += part
            labels[name] += [label] * len(part)
    train, test = ((files[name], np.array(labels[name], np.int32)) for name in ("train", "test"))
    return train, test, [path.name for path in classes]


def _oxford(folder: Path) -> tuple[Split, Split, list[str]]:
    """Trains on `tstid`, 6,149 images, and tests on `trnid` and `valid`, 1,020 each.

    The published protocol learns from the small parts and tests on the large one. That is another challenge than this
    one, which has many images, so the two change places, and accuracies cannot be compared with published ones.
    """
    labels = _matrix(folder / "imagelabels.mat", "labels")
    train = _matrix(folder / "setid.mat", "tstid")
    test = np.concatenate([_matrix(folder / "setid.mat", name) for name in ("trnid", "valid")])
    for number in (*train, *test):
        if not 1 <= number <= len(labels):
            raise ValueError(
                f"--data: image numbers must be from 1 to {len(labels)}, the labels in {folder / 'imagelabels.mat'}; "
                f"got {number} in {folder / 'setid.mat'}."
            )
    kinds = np.unique(labels)
    for kind in kinds:
        for name, part in (("learn from", train), ("test", test)):
            if kind not in labels[part - 1]:
                raise ValueError(f"--data: class {kind} has no image to {name} in {folder / 'setid.mat'}.")
    splits = [
        ([folder / "jpg" / f"image_{number:05d}.jpg" for number in part], np.searchsorted(kinds, labels[part - 1]))
        for part in (train, test)
    ]
    train, test = ((files, numbers.astype(np.int32)) for files, numbers in splits)
    return train, test, [f"class {kind}" for kind in kinds]


def _matrix(path: Path, name: str) -> np.ndarray:
    """One row of whole numbers from a MATLAB file; nothing in it is executed."""
    if not path.is_file():
        raise ValueError(f"--data: Oxford's layout has imagelabels.mat, setid.mat and jpg/; {path} is missing.")
    try:
        return loadmat(path)[name].ravel().astype(int)
    except Exception as error:  # a damaged file fails in the reader in many ways
        raise ValueError(f"--data: {path} must be a MATLAB file that holds `{name}`; {error!r}.") from error


def _read(files: list[Path], size: int) -> np.ndarray:
    images = np.empty((len(files), size, size, 3), np.float32)
    for i, path in enumerate(track(files, "reading photographs", transient=True)):
        try:
            with Image.open(path) as image:
                upright = ImageOps.exif_transpose(image).convert("RGB")
                images[i] = np.asarray(ImageOps.fit(upright, (size, size)), np.float32) / 255
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's for a broken PNG
            raise ValueError(f"--data: every image must be readable; {path} is not: {error}.") from error
    return images
