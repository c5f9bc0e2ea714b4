"""The numbers rule as other processors would see it: fewer instructions, other threads.

Each setting is a process of its own, since libraries look at the processor when they are loaded.
It runs test_parity_random.py, and `-s` shows the largest ratio and error that it came to.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# What our kernels, XLA's, PyTorch's own and oneDNN's may use.
_NAMES = ("FLAXVGG_INSTRUCTIONS", "XLA_FLAGS", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
_BASELINE = ("baseline", "--xla_cpu_max_isa=SSE4_2", "default", "SSE41")
_AVX2 = ("AVX2", "--xla_cpu_max_isa=AVX2", "avx2", "AVX2")
_AVX512 = ("AVX-512", "--xla_cpu_max_isa=AVX512", "avx512", "AVX512_CORE")
SETTINGS = {
    "the baseline": dict(zip(_NAMES, _BASELINE, strict=True)),
    "AVX2": dict(zip(_NAMES, _AVX2, strict=True)),
    "AVX-512 without FP16": dict(zip(_NAMES, _AVX512, strict=True)),
    # One side alone: the ratio has both in it.
    "AVX2 for us": dict(zip(_NAMES[:2], _AVX2[:2], strict=True)),
    "AVX2 for PyTorch": dict(zip(_NAMES[2:], _AVX2[2:], strict=True)),
    # XLA, PyTorch and oneDNN make as many threads as there are processors to run on.
    "one thread": {"OMP_NUM_THREADS": "1"},
    "two threads": {"OMP_NUM_THREADS": "2"},
}


_PINNED = """
import os, sys
os.sched_setaffinity(0, {int(number) for number in sys.argv[1].split(",")})
os.execv(sys.argv[2], sys.argv[2:])
"""


def _processors(count: int) -> str:
    """The numbers of that many of the processors that this process may run on."""
    allowed = sorted(getattr(os, "sched_getaffinity", lambda _: ())(0))
    if len(allowed) < count:
        pytest.skip(f"there are {len(allowed)} processors to choose")
    return ",".join(map(str, allowed[:count]))


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="Intel's and AMD's names")
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_rule_holds_on_another_processor(setting: str):
    variables = SETTINGS[setting]
    wanted = variables.get("ATEN_CPU_CAPABILITY", "default")  # PyTorch asks no processor
    if wanted.upper() not in ("DEFAULT", torch.backends.cpu.get_cpu_capability(), "AVX2"):
        pytest.skip(f"this processor has no {variables['FLAXVGG_INSTRUCTIONS']}")
    flags = f"{os.environ.get('XLA_FLAGS', '')} {variables.get('XLA_FLAGS', '')}"
    tests = Path(__file__).with_name("test_parity_random.py")
    command = [sys.executable, "-m", "pytest", "-q", "-s", "-n", "0", str(tests)]
    threads = int(variables.get("OMP_NUM_THREADS", 0))
    done = subprocess.run(
        [sys.executable, "-c", _PINNED, _processors(threads), *command] if threads else command,
        env=os.environ | variables | {"XLA_FLAGS": flags},
        cwd=tests.parent.parent,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("largest ratio")]
    print(f"\n{setting}:", *lines, sep="\n")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert lines, done.stdout[-4000:]
