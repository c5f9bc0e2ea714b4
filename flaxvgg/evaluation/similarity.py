"""How alike two maps are: correlation of values, of ranks, and structural similarity."""

import numpy as np
from jaxtyping import Float
from scipy.ndimage import uniform_filter
from scipy.stats import rankdata

SSIM_WINDOW = 7


def pearson(a: Float[np.ndarray, "*n k"], b: Float[np.ndarray, "*n k"]) -> Float[np.ndarray, "*n"]:
    """Pearson's correlation over the last axis; NaN where either is constant or not finite."""
    known = np.ones(a.shape[:-1], bool)
    centred = []
    for x in (a, b):
        x = x.astype(np.float64)
        known &= np.isfinite(x).all(axis=-1) & (x.min(axis=-1) < x.max(axis=-1))
        x = np.where(known[..., None], x, 0)
        centred.append(x - x.mean(axis=-1, keepdims=True))
    u, v = centred
    size = np.sqrt((u**2).sum(axis=-1) * (v**2).sum(axis=-1))
    return np.where(known, (u * v).sum(axis=-1) / np.where(size == 0, 1, size), np.nan)


def spearman(a: Float[np.ndarray, "*n k"], b: Float[np.ndarray, "*n k"]) -> Float[np.ndarray, "*n"]:
    """Spearman's rank correlation over the last axis, equal values sharing their mean rank.

    NaN where `pearson` is.
    """
    return pearson(*(rankdata(x, axis=-1, nan_policy="propagate") for x in (a, b)))


def ssim(a: Float[np.ndarray, "*n h w"], b: Float[np.ndarray, "*n h w"]) -> Float[np.ndarray, "*n"]:
    """The structural similarity of maps in [0, 1], of at least 7x7.

    Wang et al. 2004, with uniform windows of 7x7 inside the map and sample covariances:
    scikit-image's `structural_similarity` as it comes.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    inside = (..., *[slice(SSIM_WINDOW // 2, -(SSIM_WINDOW // 2))] * 2)

    def mean(x: Float[np.ndarray, "*n h w"]) -> Float[np.ndarray, "*n _ _"]:
        return uniform_filter(x, SSIM_WINDOW, axes=(-2, -1))[inside]

    mean_a, mean_b = mean(a), mean(b)
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    covariance = unbiased * (mean(a * b) - mean_a * mean_b)
    variances = unbiased * (mean(a * a) - mean_a**2 + mean(b * b) - mean_b**2)
    low, high = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + low) / (mean_a**2 + mean_b**2 + low)
    structure = (2 * covariance + high) / (variances + high)
    return (luminance * structure).mean(axis=(-2, -1))
