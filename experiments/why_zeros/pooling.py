"""(f) Max pooling makes the zeros."""

import numpy as np

from experiments.why_zeros.subject import Subject
from experiments.why_zeros.text import Table, percent

CLAIM = "Max pooling makes the zeros"
METHOD = (
    "Of four independent values, each zero with probability p, all are zero with p^4; “within a "
    "channel” takes p of each channel in each photo."
)


def all_four_zero(maps: np.ndarray) -> np.ndarray:
    """Windows (N, h//2, w//2, C) of maps (N, h, w, C) in which all four values are zero."""
    n, h, w, c = maps.shape
    zero = maps[:, : h // 2 * 2, : w // 2 * 2] == 0
    return zero.reshape(n, h // 2, 2, w // 2, 2, c).all(axis=(2, 4))


def measure(subject: Subject) -> dict:
    """Zeros before and after each pooling, and what independence of the four would give."""
    pools = subject.before_pools
    differing = dict.fromkeys(pools, 0)
    for i in range(len(subject.pixels)):
        taps = subject.activations([*pools, *pools.values()], slice(i, i + 1))
        for pool, relu in pools.items():
            differing[pool] += int(((taps[pool] == 0) != all_four_zero(taps[relu])).sum())
    found = []
    for pool, relu in pools.items():
        before, after = subject.counts[relu], subject.counts[pool]
        p = np.asarray(before.zeros) / before.values  # by photo and channel
        found.append(
            {
                "pool": pool,
                "before": float(p.mean()),
                "after": float(np.asarray(after.zeros).mean() / after.values),
                "differing": differing[pool],
                "windows": after.values * after.zeros.size,
                "independent": float(p.mean() ** 4),
                "independent_in_a_channel": float((p**4).mean()),
            }
        )
    return {"pools": found}


def verdict(found: dict) -> str:
    """One sentence."""
    pools, last = found["pools"], found["pools"][-1]
    lowers = all(row["after"] < row["before"] for row in pools)
    differing = sum(row["differing"] for row in pools)
    windows = sum(row["windows"] for row in pools)
    return (
        f"{'False, it removes them' if lowers else 'Not as expected'}: a pooled value is zero "
        f"exactly where all four are ({differing} exceptions in {windows:,}), so "
        f"{last['pool']} falls from {percent(last['before'])} to {percent(last['after'])}; were "
        f"the four independent it would fall to {percent(last['independent'])}, or to "
        f"{percent(last['independent_in_a_channel'])} given each channel's own rate in each photo: "
        "zeros come in patches, and in whole channels."
    )


def table(found: dict) -> Table:
    """One row a pooling."""
    header = [
        "pooling", "zeros before", "after", "exceptions to “zero where all four are”",
        "independent values would give", "independent within a channel",
    ]  # fmt: skip
    return header, [
        [
            row["pool"],
            percent(row["before"]),
            percent(row["after"]),
            f"{row['differing']} of {row['windows']:,}",
            percent(row["independent"]),
            percent(row["independent_in_a_channel"]),
        ]
        for row in found["pools"]
    ]
