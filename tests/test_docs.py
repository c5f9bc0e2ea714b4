"""The pages: what they link to exists, what they show runs, and the site is built from them."""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import typer
from browser import Browser, find_browser
from site_pages import (
    PAGES,
    ROOT,
    blocks,
    command_lines,
    inline_commands,
    is_pattern,
    name_of,
    text_of,
    without_blocks,
)

import flaxvgg
from flaxvgg.commands.cli import app
from flaxvgg.training.settings import read_run


def _prose(page: Path) -> str:
    return re.sub(r"`[^`\n]+`", "", without_blocks(page))


def _anchors(page: Path) -> set[str]:
    """Headings as code hosts and MyST turn them into anchors."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^()\s]+)\)", _prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{target} is not there"
        assert found.is_relative_to(ROOT), f"{target} is outside of the checkout"
        if anchor:
            assert anchor in _anchors(found), f"{target}: there is no such heading"


def test_every_page_is_in_a_toctree():
    entered = {ROOT / "docs" / "index.md"}
    for page in PAGES:
        for body in blocks(page, "{toctree}"):
            for line in body.split():
                target = re.sub(r".*<(.*)>", r"\1", line)
                entered |= {x.resolve() for x in page.parent.glob(f"{target}.md")}
    assert set(PAGES) - entered == set()


def _command_lines() -> Iterator[tuple[str, str]]:
    """Every command line of a shell block, and those in the text, that is no pattern."""
    for page in PAGES:
        shown = [line for shell in blocks(page, "sh") for line in command_lines(shell)]
        for line in (*shown, *inline_commands(page)):
            at = re.search(r"(^|[ /])flaxvgg (?=[a-z])", line)
            if at and not is_pattern(line[at.end() :]):
                yield name_of(page), line[at.end() :]


def test_command_lines_are_understood():
    """By the real command line, which is not run: names, options and kinds of values."""
    commands = typer.main.get_command(app).commands
    lines = sorted(set(_command_lines()))
    assert len(lines) > 20
    for page, line in lines:
        name, *rest = shlex.split(line)
        assert name in commands, f"{page}: flaxvgg {line}"
        if not rest:  # it is only mentioned
            continue
        try:
            commands[name].make_context(name, rest)
        except typer.BadParameter.__base__ as error:  # typer's UsageError
            pytest.fail(f"{page}: flaxvgg {line}: {error.format_message()}")


def test_modules_and_targets_exist():
    targets = re.findall(r"^([a-z-]+(?: [a-z-]+)*):", text_of(ROOT / "Makefile"), re.MULTILINE)
    targets = {target for line in targets for target in line.split()}
    for page in PAGES:
        text = "".join(blocks(page, "sh"))
        for target in re.findall(r"^make ([a-z -]+?)(?:  |$)", text, re.MULTILINE):
            assert set(target.split()) <= targets, f"{name_of(page)}: make {target}"
        for module in re.findall(r"python -m ([\w.]+)", text):
            path = ROOT / module.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").is_file(), f"{name_of(page)}: {module}"


def test_python_is_python_and_its_names_are_ours():
    seen = 0
    for page in PAGES:
        for code in blocks(page, "python", "{code-cell}"):
            seen += 1
            try:
                tree = ast.parse(code)
            except SyntaxError as error:
                pytest.fail(f"{name_of(page)}: {error}: {error.text}")
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "flaxvgg":
                    known = {*flaxvgg.__all__, "images", "streaming"}
                    assert node.attr in known, f"{name_of(page)}: flaxvgg.{node.attr}"
    assert seen > 30


def test_toml_is_what_train_takes(tmp_path):
    for page in PAGES:
        for text in blocks(page, "toml"):
            tomllib.loads(text)
            path = tmp_path / "run.toml"
            path.write_text(text)
            assert read_run(path).data.train == tmp_path / "pets", name_of(page)


def test_every_public_name_is_in_the_reference_once():
    text = "".join(map(text_of, sorted((ROOT / "docs" / "reference").glob("*.md"))))
    shown = re.findall(r"^\.\. auto\w+:: flaxvgg\.(\w+)$", text, re.MULTILINE)
    assert sorted(shown) == sorted(flaxvgg.__all__)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The site as `make docs` builds it, with every notebook executed."""
    out = tmp_path_factory.mktemp("site")
    # Not what conftest.py sets for this process.
    mine = ("XLA_FLAGS", "JAX_ENABLE_COMPILATION_CACHE", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in mine}
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs"]
    command += ["-D", f"nb_execution_cache_path={out / 'executed'}", ".", str(out / "html")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return out / "html"


@pytest.mark.slow
def test_the_site_is_whole_and_needs_no_network(site):
    """No warning (of links, of references, in a notebook), and nothing that is fetched."""
    built = {x.relative_to(site).with_suffix("").as_posix() for x in site.rglob("*.html")}
    assert {name_of(page).removesuffix(".md") for page in PAGES} | {"index"} <= built
    for page in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|img|link|iframe)\b[^>]*>", text_of(page))
        fetched = [tag for tag in tags if re.search(r'(src|href)="(https?:)?//', tag)]
        assert not fetched, f"{page.relative_to(site)}: {fetched}"
    tutorials = sorted((site / "docs" / "tutorials").glob("*.html"))
    assert len(tutorials) == 7
    for page in tutorials:
        assert 'class="cell_output' in text_of(page), f"{page.name} was not executed"


# The texts of cells that are too narrow for the words in them.
_THIN = """
[...document.querySelectorAll("td p")]
    .filter(p => p.textContent.length > 30 && p.clientWidth < 60).map(p => p.textContent)
"""


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no Chromium")
def test_the_site_fits_a_phone_and_a_desk(site, tmp_path):
    pages = [page for page in PAGES if page.is_relative_to(ROOT / "docs")]
    with Browser(find_browser(), tmp_path / "profile") as browser:
        for page in (*pages, ROOT / "README.md"):
            built = (site / page.relative_to(ROOT)).with_suffix(".html")
            for width in (390, 1280):
                browser.open(built, width, 900)
                wide = browser.evaluate("document.documentElement.scrollWidth")
                assert wide <= width, f"{name_of(page)} scrolls sideways at {width} px: {wide}"
                thin = browser.evaluate(_THIN)
                assert not thin, f"{name_of(page)} at {width} px has columns of letters: {thin}"
                assert all(x.startswith(("file:", "data:")) for x in browser.requests), page
