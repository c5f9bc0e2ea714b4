"""What package indexes and citation tools read of the project."""

import importlib.util
import itertools
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import flaxvgg

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
_PREFIX = "Programming Language :: Python :: 3."


def test_the_citation_is_of_this_version_and_licence():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert cited["cff-version"] == "1.2.0"
    assert cited["version"] == flaxvgg.__version__
    assert cited["license"] == PROJECT["license"]
    assert cited["title"] == PROJECT["name"]
    assert {"message", "authors", "type"} <= cited.keys()


def test_the_classifiers_are_the_pythons_that_are_supported():
    versions = {int(x.removeprefix(_PREFIX)) for x in PROJECT["classifiers"] if _PREFIX in x}
    (least,) = re.findall(r"^>=3\.(\d+)$", PROJECT["requires-python"])
    assert min(versions) == int(least)
    assert versions == set(range(min(versions), max(versions) + 1))
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"Python 3.{min(versions)} to 3.{max(versions)}" in readme
    assert (ROOT / "flaxvgg" / "py.typed").is_file()  # "Typing :: Typed"
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_what_the_readme_shows_is_there():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.encode()) <= 6 * 1024
    places = re.findall(r"\]\((?!https?:)([^)#]+)", readme)
    assert places
    for place in places:
        assert (ROOT / place).exists(), place


@pytest.fixture
def hook(monkeypatch) -> ModuleType:
    """hatch_metadata.py, in an environment that builds nothing and has no hatchling."""
    interface = ModuleType("interface")
    interface.MetadataHookInterface = object  # type: ignore[attr-defined]
    name = "hatchling.metadata.plugin.interface"
    parents = itertools.accumulate(name.split("."), "{}.{}".format)
    for parent in parents:
        monkeypatch.setitem(sys.modules, parent, interface)
    spec = importlib.util.spec_from_file_location("hatch_metadata", ROOT / "hatch_metadata.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_on_an_index_no_link_is_relative(hook, monkeypatch):
    text = "![Photos](a/b.png) is [so](c.md#d), [E.md](E.md), [out](https://x.y/z), [in](#in)"
    address = "https://host.example/me/flaxvgg"
    assert hook.on_an_index(text, address) == (
        f"![Photos]({address}/raw/HEAD/a/b.png) is [so]({address}/blob/HEAD/c.md#d), "
        f"[E.md]({address}/blob/HEAD/E.md), [out](https://x.y/z), [in](#in)"
    )
    assert hook.on_an_index(text, "") == (
        "*Photos* is so (c.md#d), E.md, [out](https://x.y/z), [in](#in)"
    )
    made = hook.CustomMetadataHook()
    made.root = ROOT
    for set_to in (address, ""):
        monkeypatch.setenv("FLAXVGG_REPOSITORY", set_to)
        metadata: dict = {}
        made.update(metadata)
        assert not re.search(r"\]\((?!https:)", metadata["readme"]["text"])
        assert ("urls" in metadata) == bool(set_to)
        assert metadata.keys() <= set(PROJECT["dynamic"])
