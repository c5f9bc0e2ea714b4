"""A commit as it would be installed, in a folder, and a process that runs its cases."""

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from experiments.compare_commits import cases


def resolve(commit: str) -> str:
    """The commit's digits. Raises ValueError for what is none."""
    command = ["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"no commit {commit} in this repository")
    return done.stdout.strip()


def build(commit: str, folder: Path) -> Path:
    """flaxvgg of a commit with its compiled part, in a folder for PYTHONPATH, without the rest.

    Raises RuntimeError with the end of what was said where it cannot be built.
    """
    source, target = folder / "source", folder / "packages"
    archive = subprocess.run(["git", "archive", commit], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(source, filter="data")
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    command = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--no-deps"]
    command += ["--target", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{commit[:12]} cannot be built: {done.stderr[-500:]}")
    return target


class Process:
    """A process with a commit's flaxvgg; to be used in `with`."""

    def __init__(self, packages: Path):
        environment = os.environ | {"PYTHONPATH": str(packages), "PYTHONSAFEPATH": "1"}
        self._process = subprocess.Popen(
            [sys.executable, cases.__file__],
            env=environment,
            cwd=packages,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def prepare(self, case: str) -> str:
        """Make the case ready, and run it once; why this commit cannot, or an empty text."""
        return self._ask(case)

    def run(self) -> None:
        """Run the case once."""
        self._ask("")

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        for answer in self._process.stdout:
            if answer.startswith(cases.MARK):
                return answer.removeprefix(cases.MARK).strip()
        raise RuntimeError(f"the process ended with exit code {self._process.wait()}")
