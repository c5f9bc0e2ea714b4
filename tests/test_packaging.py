"""What package indexes and citation tools read of the project."""

import re
import tomllib
from pathlib import Path

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


def test_what_the_readme_shows_is_there_and_in_the_source_distribution():
    """Links are relative: on a package index they need the address of the repository."""
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.encode()) <= 6 * 1024
    places = re.findall(r"\]\((?!https?:)([^)#]+)", readme)
    assert places
    for place in places:
        assert (ROOT / place).exists(), place
