"""What every picture is made of."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**kwargs) -> "Figure":
    """An empty figure, without pyplot's state. Raises ValueError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("pictures need matplotlib: pip install 'flaxvgg[plot]'") from None
    return Figure(**kwargs)


def enlarge(maps: Float[np.ndarray, "h w"], size: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """One map resized to (H, W), bicubic, for looking at."""
    image = Image.fromarray(np.asarray(maps, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))
