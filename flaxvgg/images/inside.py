"""Images that lie in another file, one by one: as what is trained on, beside paths."""

import dataclasses
from typing import Any

from flaxvgg.files.foreign import AnyPath


@dataclasses.dataclass(frozen=True)
class Inside:
    """An image inside a file: its number in what `holds` it, and its name there."""

    holds: Any
    row: int
    name: str

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes | AnyPath:
        """The bytes of an image file, or where it is. Raises ImageError where it cannot be read."""
        return self.holds[self.row]["image"]
