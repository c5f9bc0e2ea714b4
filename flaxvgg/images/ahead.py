"""What is read ahead through Grain: by threads of this process, or of others besides."""

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(
    read: Callable[[int], T], count: int, *, threads: int, buffer: int, decoders: int = 0
) -> Generator[T, None, None]:
    """`read(0)` to `read(count - 1)`, in order, up to `buffer` before they are asked for.

    By so many threads, or by `decoders` processes that share them: `read` and what comes of it are
    pickled then. Closing the generator ends them. What `read` raises is raised; ChildProcessError
    where a process was killed, ValueError for what cannot be given to another process.
    """
    import grain

    numbers = grain.MapDataset.range(count)
    if not decoders:
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
        yield from numbers.map(read).to_iter_dataset(options)
        return
    _parse_flags()
    each = max(1, -(-buffer // decoders))
    own = max(1, min(threads // decoders, each))
    # As bytes it goes through a pipe: shared memory is 64 MB in a container that asks for no more.
    packed = numbers.map(partial(_packed, read))
    options = grain.ReadOptions(num_threads=own, prefetch_buffer_size=each)
    several = grain.MultiprocessingOptions(num_workers=decoders, per_worker_buffer_size=each)
    items = iter(packed.to_iter_dataset(options).mp_prefetch(several, _begin))
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except (TypeError, AttributeError, pickle.PicklingError) as error:
                if "pickle" not in str(error):
                    raise
                line = f"these images cannot be given to other processes ({error}): no decoders"
                raise ValueError(line) from None
            except RuntimeError as error:
                if "exit code" not in str(error):
                    raise
                code = str(error).split("exit code ")[1].split(".")[0]
                raise ChildProcessError(
                    f"a decoding process has ended (exit code {code}): rerun to resume, with fewer "
                    "decoders where memory was short; scripts need if __name__ == '__main__'"
                ) from None
            yield pickle.loads(item)
    finally:
        items.close()


def _packed(read: Callable[[int], Any], number: int) -> bytes:
    return pickle.dumps(read(number))


def _parse_flags() -> None:
    """Grain asks Abseil's flags, which nobody has parsed where the program has none."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _begin(number: int, count: int) -> None:
    """What a decoding process does first: it ends with its parent, and by nothing else.

    Ctrl-C goes to all processes of a terminal, and the first one has work to save.
    """
    for signum in signal.SIGINT, signal.SIGTERM:
        signal.signal(signum, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow, daemon=True).start()
