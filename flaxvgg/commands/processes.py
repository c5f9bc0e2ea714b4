"""`--distributed`: this is one of several processes of a run, which end together."""

import os
import sys
from typing import NoReturn

import typer

_PATIENCE = 60  # seconds without a sign of life after which a process is given up


def join_processes() -> None:
    """Find the other processes, before any device is used. Raises ValueError where none are."""
    import jax

    names = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}
    told = {key: int(os.environ[name]) for key, name in names.items() if name in os.environ}
    try:
        jax.distributed.initialize(
            **told, heartbeat_timeout_seconds=_PATIENCE, shutdown_timeout_seconds=_PATIENCE
        )
    except ValueError as error:
        needed = ", ".join(["JAX_COORDINATOR_ADDRESS", *names.values()])
        raise ValueError(f"--distributed: {error} Set {needed}") from None


def end(code: int) -> NoReturn:
    """End a command with this code; one of several processes at once.

    As Python ends, it would wait for the others, and they for what it was to give them.
    """
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise typer.Exit(code) from None


def ended_by_another(error: Exception) -> str:
    """The line for what comes of the end of another process; "" for any other error."""
    said = str(error)
    if not any(word in said for word in ("Gloo", "NCCL", "coordination service")):
        return ""
    return "another process of this run has ended: see what it said, and start all of them again"
