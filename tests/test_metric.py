"""What a metric's name says."""

import pytest

from fedpara.metric import Metric


@pytest.mark.parametrize(
    ("name", "is_share"),
    [
        ("acc", True), ("test/acc_wide", True), ("personal/trained_acc_mean", True), ("test/accuracy", True),
        ("acc5", True), ("accel_mse", False), ("test/accumulated", False), ("mse", False),
    ],
)  # fmt: skip
def test_an_accuracy_is_known_by_its_name(name, is_share):
    assert Metric(name).is_share == is_share
