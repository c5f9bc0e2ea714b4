"""The contracts on imports: that they hold is `make lint`'s, that they can fail is shown here."""

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wrong_import_is_caught(tmp_path):
    """One for each contract: upwards, in a circle, printing, another framework, JAX in data."""
    ignore = shutil.ignore_patterns("__pycache__", "native.*")
    shutil.copytree(ROOT / "flaxvgg", tmp_path / "flaxvgg", ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, line in {
        "ops/pooling.py": "import flaxvgg.heads.replacement",
        "ops/linear.py": "import flaxvgg.ops.pooling, torch",
        "sparsity/exact.py": "import flaxvgg.sparsity.report, rich",
        "network/config.py": "import jax",
    }.items():
        path = tmp_path / "flaxvgg" / module
        path.write_text(f"{path.read_text()}\n{line}\n")
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"Contracts: 0 kept, 5 broken", done.stdout), done.stdout
    for arrow in (
        "flaxvgg.ops.pooling -> flaxvgg.heads.replacement",
        "flaxvgg.ops.linear -> torch",
        "flaxvgg.sparsity.exact -> rich",
        "flaxvgg.network.config -> jax",
    ):
        assert arrow in done.stdout, arrow


def test_few_modules_at_the_root_and_none_is_long():
    assert len(list((ROOT / "flaxvgg").glob("*.py"))) <= 6
    modules = [*(ROOT / "flaxvgg").rglob("*.py"), *(ROOT / "flaxvgg").rglob("*.c")]
    long = {path.name for path in modules if len(path.read_text("utf-8").splitlines()) > 400}
    assert not long


def test_the_picture_of_the_packages_is_that_of_the_imports():
    script = runpy.run_path(str(ROOT / "scripts" / "draw_packages.py"))
    drawn = script["draw"](script["dependencies"]())
    assert (ROOT / "docs" / "packages.svg").read_text("utf-8") == drawn, (
        "the imports have changed: python scripts/draw_packages.py draws them anew"
    )
