"""The compiled operations under sanitizers, from many threads at once, and after a fork."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import pytest

from flaxvgg.ops import native
from networks import random_images

SOURCES = Path(native.__file__).parent
TRIAL = Path(__file__).with_name("native_trial.c")
SCHEDULE = Path(__file__).with_name("schedule_trial.c")
# As hatch_build.py has them for its compiler.
LEVELS = {"baseline": [], "avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4"]}
NAMES = {"baseline": "baseline", "avx2": "AVX2", "avx512": "AVX-512"}


def _compiled(folder: Path, sanitizers: str) -> Path:
    """The library's sources and the trial as one program that the sanitizers watch."""
    include = f"-I{Path(jaxlib.__file__).parent / 'include'}"
    flags = ["-std=gnu11", "-g", "-O1", "-Wno-psabi", f"-fsanitize={sanitizers}", include]
    flags += ["-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    objects = []

    def compile_one(source: Path, name: str, *options: str) -> None:
        objects.append(folder / f"{name}.o")
        command = ["gcc", *flags, *options, "-c", source, "-o", objects[-1]]
        subprocess.run(command, check=True)

    for level in LEVELS if native.INSTRUCTIONS != "baseline" else ["baseline"]:
        for source in ("conv3x3", "by_kernel", "linear"):
            name = f"{source}_{level}"
            compile_one(SOURCES / f"{source}.c", name, f"-DLEVEL={name}", *LEVELS[level])
    compile_one(SOURCES / "xla.c", "xla", "-Dmalloc=trial_malloc")  # which can fail
    program = folder / "trial"
    command = ["gcc", *flags, "-Wall", "-Wextra", "-Werror", TRIAL, *objects, "-lm", "-lpthread"]
    subprocess.run([*command, "-o", program], check=True)
    return program


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("gcc"), reason="there is no gcc")
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_no_sanitizer_finds_anything(tmp_path: Path, sanitizers: str):
    program = _compiled(tmp_path, sanitizers)
    # Where addresses are drawn from more than it knows, the thread sanitizer does not start.
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    for level, name in NAMES.items():
        if list(NAMES).index(level) > list(NAMES.values()).index(native.INSTRUCTIONS):
            continue
        done = subprocess.run(
            [*fixed, program, "200"],
            env=os.environ | {"FLAXVGG_INSTRUCTIONS": name},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout == f"1800 calls with {name}\n"


# Of one image by a prepared kernel, on so many cores: how many of them work at least.
BUSY = {(224, 64): 45, (224, 16): 12, (112, 64): 43, (112, 16): 12, (64, 16): 12, (32, 8): 6}


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("gcc"), reason="there is no gcc")
def test_one_image_keeps_many_cores_busy(tmp_path: Path):
    """By the turns that are planned, shared as they would be: no clock is asked."""
    program = tmp_path / "schedule"
    flags = ["-std=gnu11", "-O1", "-Wno-psabi", f"-I{SOURCES}", *LEVELS["avx2"]]
    if native.INSTRUCTIONS == "baseline":
        flags = flags[:4]
    subprocess.run(["gcc", *flags, SCHEDULE, "-o", program, "-lm"], check=True)
    lines = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    least: dict[tuple[int, int], float] = {}
    for line in lines.splitlines():
        size, _, workers, is_packed, speedup = line.split()
        if is_packed == "1":
            key = int(size), int(workers)
            least[key] = min(least.get(key, np.inf), float(speedup))
    print(least)
    assert all(least[key] >= wanted for key, wanted in BUSY.items())


@pytest.mark.slow
def test_many_calls_at_once_are_those_of_one_after_another():
    random = np.random.default_rng(0)
    shapes = [(1, 5, 4, 16), (2, 9, 12, 40), (1, 33, 31, 64), (3, 2, 2, 3), (1, 1, 1, 512)]
    calls = []
    for n, h, w, c in shapes:
        x, dy = (jnp.asarray(random_images(n, h, w, channels=k)) for k in (c, 24))
        kernel = jnp.asarray(random.standard_normal((3, 3, c, 24)), jnp.float32)
        flat = jnp.asarray(random.standard_normal((n, 9 * c)), jnp.float32)
        calls += [
            (jax.jit(native.conv3x3), (x, kernel)),
            (jax.jit(native.conv3x3_by_kernel), (x, dy)),
            (jax.jit(native.linear), (flat, kernel.reshape(9 * c, 24))),
        ]
    expected = [np.asarray(function(*operands)).tobytes() for function, operands in calls]

    def right(i: int) -> bool:
        function, operands = calls[i % len(calls)]
        return np.asarray(function(*operands)).tobytes() == expected[i % len(calls)]

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(right, range(20_000), chunksize=50))


_FORKED = """
import os, sys, warnings
import numpy as np
from flaxvgg.ops import native  # the library is loaded, JAX has no threads yet

def found():
    import jax.numpy as jnp
    x, kernel = jnp.ones((2, 33, 31, 64)), jnp.ones((3, 3, 64, 96))
    return float(np.asarray(native.conv3x3(x, kernel)).sum())

children = []
for _ in range(3):
    if (child := os.fork()) == 0:
        os._exit(0 if found() == float(sys.argv[1]) else 1)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
assert codes == [0, 0, 0], codes
assert found() == float(sys.argv[1])
warnings.simplefilter("ignore")  # JAX has threads now, and warns of what follows
if (child := os.fork()) == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert found() == float(sys.argv[1])  # a child that ends takes nothing along
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_after_a_fork():
    x, kernel = jnp.ones((2, 33, 31, 64)), jnp.ones((3, 3, 64, 96))
    expected = str(float(np.asarray(native.conv3x3(x, kernel)).sum()))
    done = subprocess.run(
        [sys.executable, "-c", _FORKED, expected], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
