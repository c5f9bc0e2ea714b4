"""Ways to add up the products of a float32 matrix product, in NumPy as a processor would do it.

A fused multiply-add rounds once: in float64 the product of two float32 is exact, so the sum rounded
to float32 is the same but for double rounding, which is one case in 2^29.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Float

Beyond = Literal["float32", "float64", "compensated"]


@dataclasses.dataclass(frozen=True)
class Way:
    """Products added one after another (`chain`), chains to a group, and how groups are added.

    "compensated" is a float32 sum whose rounding error starts the next group (`e` in t' = t + s,
    e = s - (t' - t)). `stored` says that the end is rounded to float32, as it is in a buffer of
    products; otherwise the float64 sum, or t + e, goes on as it is.
    """

    chains: int
    beyond: Beyond
    chain: int = 8
    stored: bool = True

    @property
    def name(self) -> str:
        """In words."""
        kept = "" if self.stored else ", not rounded at the end"
        return f"{self.chains} chains of {self.chain}, {self.beyond} beyond{kept}"


TODAY = Way(8, "float32")  # what flaxvgg/ops/native does with F(2x2)
WIDE = Way(4, "float64")
COMPENSATED = Way(4, "compensated")
WAYS = (
    TODAY,
    Way(8, "float64"),
    WIDE,
    Way(2, "float64"),
    Way(8, "compensated"),
    COMPENSATED,
    Way(2, "compensated"),
    Way(1, "compensated"),
    Way(4, "compensated", chain=4),
    Way(4, "compensated", stored=False),
    Way(4, "float64", stored=False),
)


def product(
    left: Float[np.ndarray, "places tiles depth"],
    right: Float[np.ndarray, "places depth outputs"],
    way: Way,
) -> Float[np.ndarray, "places tiles outputs"]:
    """left @ right at every place: float32 where it is stored, float64 where it is not."""
    shape = (*left.shape[:2], right.shape[2])
    total = np.zeros(shape, np.float64 if way.beyond == "float64" else np.float32)
    exact, part = np.empty(shape, np.float64), np.empty(shape, np.float32)
    depth, group, rest = left.shape[2], way.chain * way.chains, np.zeros(shape, np.float32)
    for first in range(0, depth, group):
        found = np.zeros(shape, np.float32)
        for chain in range(first, min(first + group, depth), way.chain):
            part[...] = rest if chain == first else 0
            for i in range(chain, min(chain + way.chain, depth)):
                np.multiply(left[:, :, i, None], right[:, i, None], out=exact, dtype=np.float64)
                exact += part
                part[...] = exact
            found += part
        before, total = total, total + found
        if way.beyond == "compensated":
            rest = found - (total - before)
    return total.astype(np.float32) if way.stored else total.astype(np.float64) + rest
