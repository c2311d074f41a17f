"""CINIC-10 (Darlow et al. 2018) from its folders `train`, `valid` and `test` with one folder of PNG files per class."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fedpara.data.examples import DataSet, Examples, Normalize
from fedpara.data.files import listed, reading

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
HOME = "https://datashare.ed.ac.uk/handle/10283/3192"


@cache  # 180,000 files take a minute, and a sweep reads them for every job
def cinic10(data_dir: str) -> DataSet:
    """90,000 train and 90,000 test images, 3 x 32 x 32, ten classes; as in FedPara, the validation part is not used.

    Args:
        data_dir: the folder that holds `cinic-10` or `CINIC-10`.

    Raises:
        FileNotFoundError: the folder or a class is missing.
        ValueError: a file is not a 32 x 32 image.
    """
    folder = next((path for name in ("CINIC-10", "cinic-10") if (path := Path(data_dir) / name).is_dir()), None)
    if folder is None:
        raise FileNotFoundError(
            f"{Path(data_dir) / 'cinic-10'}: no such folder; unpack CINIC-10.tar.gz ({HOME}) there, "
            "or set paths.data_dir (or DATA_DIR)"
        )
    normalize = Normalize(mean=(0.4789, 0.4723, 0.4305), std=(0.2421, 0.2383, 0.2587))  # from the data set's own page
    return DataSet("cinic10", _part(folder / "train"), _part(folder / "test"), 10, normalize)


def _part(folder: Path) -> Examples:
    files = {name: listed(folder / name, "*.png") for name in CLASSES}
    if missing := [name for name, paths in files.items() if not paths]:
        raise FileNotFoundError(f"{folder / missing[0]}: holds no *.png")
    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(_pixels, (path for paths in files.values() for path in paths))))
    labels = torch.arange(10).repeat_interleave(torch.tensor([len(paths) for paths in files.values()]))
    return Examples(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels)


def _pixels(path: Path) -> np.ndarray:
    with reading(path, "a CINIC-10 image"), Image.open(path, formats=["PNG"]) as image:
        if image.size != (32, 32):  # known before anything is decoded
            raise ValueError(f"{image.width} x {image.height} pixels, expected 32 x 32")
        return np.asarray(image.convert("RGB"))  # some CINIC-10 files are grey
