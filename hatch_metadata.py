"""What a package index shows: the README with links that lead somewhere, and where the project is.

Links in the README are relative, as a checkout and a code host want them. A release is built with
FLAXVGG_REPOSITORY, the address of the repository on a code host, and they lead there. Without it
nobody knows an address: a link to a file then becomes the file's name, so that none is dead.
"""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


class CustomMetadataHook(MetadataHookInterface):
    """Sets `readme`, and `urls` where the repository's address is given; hatchling calls it."""

    def update(self, metadata: dict) -> None:
        address = os.environ.get("FLAXVGG_REPOSITORY", "").rstrip("/")
        text = Path(self.root, "README.md").read_text("utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": on_an_index(text, address)}
        if address:
            metadata["urls"] = {
                "Repository": address,
                "Documentation": f"{address}/blob/HEAD/docs/index.md",
                "Changelog": f"{address}/blob/HEAD/CHANGELOG.md",
                "Issues": f"{address}/issues",
            }


def on_an_index(text: str, address: str) -> str:
    """A page without relative links: they lead to `address`, or, where that is "", are no links."""

    def replaced(link: re.Match[str]) -> str:
        image, words, path = link.groups()
        if address:
            return f"{image}[{words}]({address}/{'raw' if image else 'blob'}/HEAD/{path})"
        if image:
            return f"*{words}*"
        return words if words == path else f"{words} ({path})"

    return _RELATIVE.sub(replaced, text)
