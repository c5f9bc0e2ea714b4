"""PyTorch's side: data sets and loaders as one writes them there.

The processes of a loader import this module, so that it imports neither JAX nor flaxvgg.
"""

import multiprocessing
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

Sample = tuple[torch.Tensor, torch.Tensor]
Transform = Callable[[Image.Image], torch.Tensor]


class Pixels(Dataset[Sample]):
    """Images as Pillow decodes them, uint8 (H, W, 3), and their labels."""

    def __init__(self, paths: Sequence[Path], labels: np.ndarray):
        self.paths, self.labels = list(paths), torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Sample:
        with Image.open(self.paths[i]) as image:
            return self.tensor(image.convert("RGB")), self.labels[i]

    def tensor(self, image: Image.Image) -> torch.Tensor:
        """What becomes of an image."""
        return torch.from_numpy(np.array(image))


class Normalised(Pixels):
    """The same after a transform of torchvision's: float32 (3, H, W)."""

    def __init__(self, paths: Sequence[Path], labels: np.ndarray, transform: Transform):
        super().__init__(paths, labels)
        self.transform = transform

    def tensor(self, image: Image.Image) -> torch.Tensor:
        return self.transform(image)


def channels_last(samples: Sequence[Sample]) -> Sample:
    """Collate to (N, 3, H, W) with the memory of (N, H, W, 3), in the one pass that it takes."""
    images, labels = zip(*samples, strict=True)
    batch = torch.stack([image.permute(1, 2, 0) for image in images])
    return batch.permute(0, 3, 1, 2), torch.stack(labels)


def loader(
    dataset: Pixels,
    batch: int,
    workers: int,
    collate: Callable[[Sequence[Sample]], Sample] | None = None,
) -> DataLoader[Sample]:
    """Batches in order, made by other processes, whose memory they share.

    They are no forks of this process, in which JAX has threads: such forks may hang. A server that
    has imported this module forks them.
    """
    context = None
    if workers:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
    return DataLoader(
        dataset,
        batch_size=batch,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context=context,
        persistent_workers=workers > 0,
    )


def torchvisions(mean: tuple[float, ...], std: tuple[float, ...]) -> Transform:
    """The transform of torchvision's own weights."""
    return transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])


def kerass(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[Image.Image], torch.Tensor]:
    """The transform of Keras's weights, of which those used here are."""
    return transforms.Compose([transforms.PILToTensor(), _to_bgr, transforms.Normalize(mean, std)])


def _to_bgr(image: torch.Tensor) -> torch.Tensor:
    return image.flip(0).float()
