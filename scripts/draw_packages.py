"""python scripts/draw_packages.py: docs/packages.svg, the packages and what each imports.

Drawn from the imports themselves. A package stands above all that it imports; an arrow that other
arrows imply is left out. tests/test_contracts.py says when the picture is out of date.
"""

import ast
import itertools
import tomllib
from html import escape
from pathlib import Path

import grimp
import networkx

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "packages.svg"
_WIDTH, _HEIGHT, _GAP, _RISE = 236, 62, 26, 44  # of a box, and between boxes, in pixels


def dependencies() -> networkx.DiGraph:
    """The packages of flaxvgg; an edge for each that imports another."""
    graph = grimp.build_graph("flaxvgg", exclude_type_checking_imports=True, cache_dir=None)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    for contract in contracts["contracts"]:
        for ignored in contract.get("ignore_imports", ()):
            importer, imported = ignored.split(" -> ")
            graph.remove_import(importer=importer, imported=imported)
    packages = sorted(
        name for name in graph.find_children("flaxvgg") if graph.find_descendants(name)
    )
    drawn = networkx.DiGraph()
    drawn.add_nodes_from(packages)
    for importer, imported in itertools.permutations(packages, 2):
        if graph.direct_import_exists(importer=importer, imported=imported, as_packages=True):
            drawn.add_edge(importer, imported)
    return drawn


def rows(graph: networkx.DiGraph) -> list[list[str]]:
    """The packages from the top: each below all that import it, as high as it can stand."""
    found: dict[str, int] = {}
    for name in networkx.lexicographical_topological_sort(graph):
        found[name] = max((found[above] + 1 for above in graph.predecessors(name)), default=0)
    return [[name for name in graph if found[name] == i] for i in range(max(found.values()) + 1)]


def draw(graph: networkx.DiGraph) -> str:
    """The picture, as SVG."""
    arranged = rows(graph)
    width = max(map(len, arranged)) * (_WIDTH + _GAP) + _GAP
    height = len(arranged) * (_HEIGHT + _RISE) + _GAP
    places = {}
    for i, row in enumerate(arranged):
        left = (width - len(row) * (_WIDTH + _GAP) + _GAP) / 2
        for j, name in enumerate(row):
            places[name] = (left + j * (_WIDTH + _GAP), _GAP + i * (_HEIGHT + _RISE))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z" fill="#777"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for importer, imported in sorted(networkx.transitive_reduction(graph).edges):
        (x, y), (end_x, end_y) = places[importer], places[imported]
        x, y, end_x = x + _WIDTH / 2, y + _HEIGHT, end_x + _WIDTH / 2
        middle = (y + end_y) / 2
        lines.append(
            f'<path d="M{x:g} {y:g}C{x:g} {middle:g} {end_x:g} {middle:g} {end_x:g} {end_y:g}" '
            'fill="none" stroke="#777" marker-end="url(#tip)"/>'
        )
    for name, (x, y) in places.items():
        lines.append(
            f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" '
            'fill="#eef3fa" stroke="#3e628c"/>'
        )
        middle = x + _WIDTH / 2
        lines.append(
            f'<text x="{middle:g}" y="{y + 20:g}" text-anchor="middle" font-weight="bold" '
            f'font-size="15">{name.removeprefix("flaxvgg.")}</text>'
        )
        for k, text in enumerate(_wrapped(_subject(name))):
            lines.append(
                f'<text x="{middle:g}" y="{y + 36 + 13 * k:g}" text-anchor="middle" '
                f'font-size="11" fill="#333">{escape(text)}</text>'
            )
    return "\n".join([*lines, "</svg>", ""])


def _subject(package: str) -> str:
    """What a package says of itself in its first line."""
    path = ROOT.joinpath(*package.split("."), "__init__.py")
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return text.split("\n")[0].rstrip(".")


def _wrapped(text: str, most: int = 38) -> list[str]:
    """Two lines at most."""
    first = ""
    words = text.split()
    while words and len(f"{first} {words[0]}") <= most:
        first = f"{first} {words.pop(0)}".strip()
    rest = " ".join(words)
    return [first, rest if len(rest) <= most else f"{rest[: most - 1].rstrip()}…"]


if __name__ == "__main__":
    PICTURE.write_text(draw(dependencies()), "utf-8")
    print(f"written: {PICTURE.relative_to(ROOT)}")
