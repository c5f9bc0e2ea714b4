"""Where PyTorch runs: the GPU where there is one."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait() -> None:
    """Return when the GPU has done what it was given."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
