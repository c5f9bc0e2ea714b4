"""How much is computed; the tests compute less."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Effort:
    """Sizes of images in pixels, channels of the convolution before the last, numbers of steps."""

    # The reported network, in both frameworks.
    arch: str = "vgg16"
    size: int = 112
    channels: int = 1024
    # The cures from random weights, on a smaller network.
    small_arch: str = "vgg11"
    small_size: int = 32
    small_channels: int = 64
    small_steps: int = 12
    # The cures on real convolutions.
    head_channels: int = 64
    training: int = 330
    tests: int = 110
    steps: int = 200
    batch: int = 8
    seeds: int = 3
