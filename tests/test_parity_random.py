"""The numbers rule at every named layer of vgg16 with random weights, at five sizes."""

import pytest

from helpers import random_images
from parity import SIZES, Port, check_three_and_one, random_port


@pytest.fixture(scope="module")
def random_weights() -> Port:
    return random_port()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_random_weights_keep_the_rule(random_weights: Port, size: tuple[int, int]):
    check_three_and_one(random_weights, random_images(3, *size))
