"""scikit-learn's 1,797 handwritten digits of 8x8 pixels, which come with the library: no download."""

import torch

from loaders import RawImages


def load_digits(part: str) -> RawImages:
    """Return the 1,437 training or the 360 test images, the same for all seeds."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    images, labels = datasets.load_digits(return_X_y=True)
    images = (images * 255 / 16).round().astype("uint8").reshape(-1, 8, 8, 1)
    train, test = train_test_split(range(len(labels)), test_size=360, random_state=0, stratify=labels)
    chosen = train if part == "train" else test
    return RawImages(torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen]).long(), list("0123456789"))
