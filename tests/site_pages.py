"""The pages as Markdown: which there are, and what is in their fenced blocks."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PATTERNS = ("*.md", "docs/**/*.md", "experiments/*/*.md", "flaxvgg/**/*.md")
PAGES = sorted({page for pattern in _PATTERNS for page in ROOT.glob(pattern)})
_FENCE = re.compile(r"^( *)(`{3,}|:{3,})(.*?)\n(.*?)^\1\2 *$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    """A page's path within the checkout."""
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    """All of a page."""
    return page.read_text("utf-8")


def without_blocks(page: Path) -> str:
    """A page's text between its fenced blocks."""
    return _FENCE.sub("", text_of(page))


def fenced(page: Path) -> Iterator[tuple[str, str]]:
    """The fenced blocks in order: kind and body, without what MyST reads at its beginning."""
    for indent, _, kind, body in _FENCE.findall(text_of(page)):
        lines = [line.removeprefix(indent) for line in body.splitlines()]
        kept = [line for line in lines if not re.match(r":\w+:", line)]
        yield kind.strip(), "\n".join(kept) + "\n"


def blocks(page: Path, *kinds: str) -> Iterator[str]:
    """The bodies of the fenced blocks of these kinds."""
    return (body for kind, body in fenced(page) if kind in kinds)


def command_lines(shell: str) -> Iterator[str]:
    """The lines of a shell block, continued ones as one, without comments."""
    for line in shell.replace("\\\n", " ").splitlines():
        if command := line.partition(" #")[0].strip():
            yield command


def inline_commands(page: Path) -> Iterator[str]:
    """`flaxvgg ...` within the text."""
    yield from re.findall(r"`(flaxvgg [^`]+)`", without_blocks(page).replace("\n", " "))


def is_pattern(command: str) -> bool:
    """Whether a line stands for many: `flaxvgg convert SOURCE --out PATH`, `flaxvgg cam ...`."""
    return bool(re.search(r"\.\.\.|\[|\b[A-Z]{4,}\b", command))
