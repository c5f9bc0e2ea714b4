"""Compiles flaxvgg/ops/native when the package is built; hatchling calls it.

The compiler is Zig's C compiler, a package like any other (ziglang), and XLA's header comes with
jaxlib, so that nothing has to be installed by hand. For Intel and AMD the arithmetic is compiled
three times; which one is used is found out when it runs. The library knows nothing of Python, so
one wheel serves all versions of it.
"""

import itertools
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_NATIVE = Path("flaxvgg", "ops", "native")
_FLAGS = ["-O3", "-std=gnu11", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror"]
_ARITHMETIC = "conv3x3", "by_kernel", "linear"
_LEVELS = {"avx2": "x86_64_v3", "avx512": "x86_64_v4"}  # and the baseline
# For each system and machine that JAX has wheels for, what Zig calls it, and the wheel's tag; glibc
# 2.17 is that of manylinux2014.
_TARGETS = {
    ("linux", "x86_64"): ("x86_64-linux-gnu.2.17", "manylinux_2_17_x86_64"),
    ("linux", "aarch64"): ("aarch64-linux-gnu.2.17", "manylinux_2_17_aarch64"),
    ("darwin", "arm64"): ("aarch64-macos.11.0", "macosx_11_0_arm64"),
    ("win32", "AMD64"): ("x86_64-windows-gnu", "win_amd64"),
}


class CustomBuildHook(BuildHookInterface):
    """Adds the library to a wheel, and to the clone that is installed with --editable."""

    def initialize(self, version: str, build_data: dict) -> None:
        """Compile, and say what the wheel is for."""
        target, tag = _TARGETS[sys.platform, platform.machine()]
        library = _NATIVE / ("native.dll" if sys.platform == "win32" else "native.so")
        build(Path(self.root), target, library)
        build_data["artifacts"].append(library.as_posix())
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{tag}"


def build(root: Path, target: str, library: Path) -> None:
    """Compile the library, whole or not at all."""
    import jaxlib

    include = Path(jaxlib.__file__).parent / "include"
    levels = {"baseline": None} | (_LEVELS if target.startswith("x86_64") else {})
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", target, *_FLAGS]
    with tempfile.TemporaryDirectory(dir=root / _NATIVE) as folder:
        objects = []
        for (name, cpu), source in itertools.product(levels.items(), _ARITHMETIC):
            objects.append(f"{folder}/{source}_{name}.o")
            options = [f"-DLEVEL={source}_{name}", *([f"-mcpu={cpu}"] if cpu else [])]
            path = str(root / _NATIVE / f"{source}.c")
            subprocess.run([*compiler, *options, "-c", path, "-o", objects[-1]], check=True)
        made = Path(folder, library.name)
        entry = str(root / _NATIVE / "xla.c")
        options = [f"-I{include}", "-shared", "-s", entry, *objects, "-o", str(made)]
        subprocess.run([*compiler, *options], check=True)
        made.replace(root / library)
