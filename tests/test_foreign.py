"""Names, classes, notes and errors that would do harm where they are printed or drawn."""

import dataclasses
import io
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import typer
from rich.console import RenderableType
from typer.testing import CliRunner

import flaxvgg
from convert.__main__ import app as convert
from flaxvgg.cam.explanation import Flag
from flaxvgg.cam.photos import PhotoMap, Plan
from flaxvgg.commands.cli import app
from flaxvgg.commands.console import (
    PlainConsole,
    Told,
    clear_errors,
    console,
    errors,
    say_left_out,
    say_where,
    step,
)
from flaxvgg.commands.tables import cam_table, facts, features_table, model_facts, sparsity_table
from flaxvgg.commands.verification import print_verification
from flaxvgg.conversion.rule import Flip, LayerCheck
from flaxvgg.files.folders import Names
from flaxvgg.files.foreign import plain
from flaxvgg.images.loading import ImageError
from flaxvgg.network.provenance import Provenance
from flaxvgg.plotting.figures import literal, new_figure
from flaxvgg.weights import checkpoint
from networks import TINY_GAP, tiny_vgg

# Markup that is wrong, a colour, a title for the terminal, a return, a text that runs backwards, a
# formula, HTML, and a byte that is no text.
EVIL = "a[red]b[/]:smile:\x1b[31m\x1b]0;t\x07\r\u202e$x^$<b>&\"'\n\udce9 z"
SHOWN = r"""a[red]b[/]:smile:\x1b[31m\x1b]0;t\x07\r\u202e$x^$<b>&"'\n\xe9 z"""
CLASSES = tuple(f"{EVIL}{i}" for i in range(5))


def _is_harmless(text: str) -> bool:
    return plain(text, lines=True) == text


def test_what_is_no_character_to_look_at_is_shown_as_an_escape():
    assert plain(EVIL) == SHOWN
    assert plain("a\nb\tc", lines=True) == "a\nb\\tc"
    for text in ("", "été", "汉字", "עברית", "👩\u200d💻", r"C:\new", "[red]"):
        assert plain(text) == text
    for character in "\0\x7f\x85\xad\u200b\u2028\u2066\ufeff\ud800\U000e0001":
        assert plain(character).startswith("\\")
    assert plain(plain(EVIL)) == plain(EVIL)


@pytest.fixture
def printed(monkeypatch):
    """What both consoles print; without colours, so that every escape is one of somebody else's."""
    file = io.StringIO()
    for each in (console, errors):
        monkeypatch.setattr(each, "_file", file)
        monkeypatch.setattr(each, "_width", 400)
        monkeypatch.setattr(each, "_color_system", None)
    return file


@pytest.fixture(scope="module")
def model():
    provenance = Provenance(EVIL, EVIL, classes=CLASSES, versions=((EVIL, EVIL),))
    recipe = dataclasses.replace(provenance.preprocessing, name=EVIL)
    return tiny_vgg(TINY_GAP, provenance=dataclasses.replace(provenance, preprocessing=recipe))


def _tables(model: flaxvgg.VGG) -> dict[str, RenderableType]:
    photo = Path(f"{EVIL.replace('/', '')}.png")
    found = PhotoMap(photo, "cam", 0, EVIL, 1.0, Flag.NEGATIVE, (1, 2))
    plan = Plan(("cam",), (0,), None, "paper", (32, 32))
    report = flaxvgg.measure_sparsity(model, np.ones((1, 32, 32, 3), np.float32), ["relu1_1"])
    zeros = {"relu1_1": np.zeros(1)}
    arrays = {"photos": np.array([str(photo)]), "relu1_1": np.zeros((1, 2))}
    return {
        "facts": facts(model_facts(model)),
        "lines": facts({"note": ["our own", EVIL], EVIL: EVIL}),
        "cam": cam_table([found, dataclasses.replace(found, name=f"{EVIL}2")], plan),
        "features": features_table(model, arrays),
        "sparsity": sparsity_table(report, zeros, EVIL),
    }


def test_tables_show_what_is_foreign_as_text(model, printed):
    for name, table in _tables(model).items():
        printed.seek(printed.truncate(0))
        console.print(table)
        text = printed.getvalue()
        assert _is_harmless(text), name
        seen = text.replace("\n", "")
        shown = SHOWN.replace("[/]", "[]") if name in ("cam", "features") else SHOWN
        assert shown in re.sub(r"\s+", " ", seen), name


def test_lines_show_what_is_foreign_as_text(model, printed, tmp_path):
    flip = Flip((0,), -1.0, 1e-7)
    for error in (0.0, 1.0):
        check = LayerCheck("relu[/]", "PyTorch", (1, 2), error, 0.1, 0, 0.0, 1, 1, (flip,))
        print_verification(console, {"PyTorch": [check]})
    console.print(facts(model_facts(model) | {"written": EVIL}), highlight=False)
    with step("loading") as found:
        found += [EVIL]
    say_left_out([EVIL, EVIL])
    say_where(Path(EVIL))
    console.print(EVIL)
    errors.print(EVIL)
    for raised in (ValueError(EVIL), OSError(2, EVIL, EVIL), ImageError(EVIL, EVIL)):
        with pytest.raises(typer.Exit), clear_errors(EVIL):
            raise raised
    with pytest.raises(typer.Exit), clear_errors(EVIL):
        raise KeyboardInterrupt
    text = printed.getvalue()
    assert _is_harmless(text)
    assert text.count(SHOWN) >= 13
    assert f"error: {SHOWN}\n" in text
    assert f"error: 2 problems with images\n  {SHOWN}\n  {SHOWN}\n" in text


def test_progress_shows_what_is_foreign_as_text():
    from rich.progress import Progress

    file = io.StringIO()
    shown = PlainConsole(file=file, width=400, force_terminal=True, color_system=None)
    with Progress(Told("{task.description}"), Told("{task.fields[told]}"), console=shown) as bar:
        bar.update(bar.add_task(EVIL, told=EVIL), completed=1)
    text = re.sub(r"\x1b\[[?0-9]*[A-Zhl]", "", file.getvalue()).replace("\r", "")
    assert _is_harmless(text)
    assert SHOWN in text


@pytest.mark.parametrize("command", [["features"], ["info"]])
def test_what_was_typed_is_shown_as_text(command):
    result = CliRunner().invoke(app, [*command, f"--{EVIL}"])
    assert result.exit_code == 2
    assert _is_harmless(result.output)
    assert r"\x1b[31m" in result.output
    for arguments in ([f"--{EVIL}"], [EVIL, "--out", EVIL, EVIL]):
        result = CliRunner().invoke(convert, arguments)
        assert result.exit_code == 2
        assert _is_harmless(result.output)
        assert r"\x1b[31m" in result.output


def test_info_of_a_strangers_checkpoint(model, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    header = checkpoint._with_checksums(checkpoint._header(model), {})
    metadata = {"flaxvgg": json.dumps(header)}
    safetensors.numpy.save_file({"w": np.zeros(3)}, path, metadata=metadata)
    monkeypatch.setattr("flaxvgg.weights.checkpoint._load", lambda *_: model)
    result = CliRunner().invoke(app, ["info", str(path)], env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    assert _is_harmless(result.output)
    assert SHOWN in result.output
    monkeypatch.undo()
    header["checksums"] = {EVIL: "0"}
    metadata = {"flaxvgg": json.dumps(checkpoint._with_checksums(header, {EVIL: "00000000"}))}
    safetensors.numpy.save_file({"w": np.zeros(3)}, path, metadata=metadata)
    result = CliRunner().invoke(app, ["info", str(path)])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert _is_harmless(result.output)


def test_a_fault_of_ours_is_no_error_of_the_users():
    for fault in (KeyError("x"), RuntimeError("internal"), AssertionError("never"), TypeError("x")):
        with pytest.raises(type(fault)), clear_errors(""):
            raise fault
    for lack in (MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9")):
        with pytest.raises(typer.Exit), clear_errors(""):
            raise lack


def test_figures_show_what_is_foreign_as_text():
    # An even number of dollars, and an odd one; dollars that somebody has escaped already.
    for text in (EVIL, "$", "a$b$c", "$x^$", r"\$", r"\$x^\$", "a\nb"):
        figure = new_figure()
        drawn = figure.suptitle(literal(text))
        figure.savefig(io.BytesIO(), format="png")
        assert drawn._preprocess_math(drawn.get_text()) == (plain(text, lines=True), False)


def test_names_of_results_fit_and_no_two_are_the_same():
    names = Names(".png")
    photos = ["a.png", "b/a.jpg", "A.png", "a-2.png", "\x1b[31m\n\u202e.png", "x.y.png", ".png"]
    found = [names(Path(photo)) for photo in photos]
    assert found[:3] == ["a.png", "a-2.png", "A-3.png"]
    assert found[4:] == ["_[31m__.png", "x.y.png", ".png.png"]
    long = [f"{folder}/{character * n}.png" for folder in "ab" for character in ("n", "é", "\udce9")
            for n in (121, 251, 252)]  # fmt: skip
    found += [names(Path(photo)) for photo in long]
    assert all(len(name.encode()) <= 255 for name in found)
    assert Counter(name.casefold() for name in found).most_common(1)[0][1] == 1
    # The digest is of the whole name: what is cut away alike stays apart without a number.
    assert names(Path("m" * 250 + "1")) != names(Path("m" * 250 + "2"))


def test_nothing_is_printed_but_through_the_consoles():
    """Rich takes what it is given for markup wherever it is asked to."""
    root = Path(flaxvgg.__file__).parent
    forbidden = re.compile(
        r"\bprint\((?!self)|\bTextColumn\(|\bfrom_markup\b|rich\.markup|\bConsole\(|markup=True"
        r"|parse_math=False|html\.escape|typer\.echo|sys\.std(out|err)\.write"
    )
    own = {
        "console.py": {"TextColumn(", "Console(", "sys.stdout.write"},  # the latter JSON alone
        "notebook.py": {"html.escape"},
        "shell.py": {"html.escape"},
    }
    for path in [*root.rglob("*.py"), *(root.parent / "convert").rglob("*.py")]:
        text = re.sub(r"(console|errors)\.print\(", "", path.read_text())
        found = {match[0] for match in forbidden.finditer(text)}
        assert found <= own.get(path.name, set()), os.fspath(path)
