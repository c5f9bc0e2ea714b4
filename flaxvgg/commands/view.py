"""flaxvgg view: look through a store in a browser.

`plotting.store_view` reads what is asked for, `commands.serving` is the server.
"""

from pathlib import Path
from typing import Annotated

import typer

from flaxvgg.commands.console import clear_errors, console, errors


def view(
    store: Annotated[Path, typer.Argument(help="A .zarr store of flaxvgg.")],
    photos: Annotated[
        Path, typer.Option(help="The folder that the store was made of, to show its photos.")
    ] = Path(),
    host: Annotated[
        str,
        typer.Option(help="The address to listen at; any but a loopback one opens it to others."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0 is a free one.")] = 0,
) -> None:
    """Show a store in a browser: its images sorted by class, score or zeros, with their maps.

    Only this machine can reach it, and nothing is written. Ctrl-C ends it.
    """
    with clear_errors("nothing was changed"):
        from flaxvgg.commands.serving import is_loopback, serve
        from flaxvgg.plotting.store_view import StoreView
        from flaxvgg.streaming.store import Store

        if store.is_file():
            raise ValueError(
                f"{store} is a file, and no store: flaxvgg features, sparsity, cam and compare "
                "make one with --out NAME.zarr"
            )
        if not photos.is_dir():
            raise ValueError(f"{photos} is no folder: name the one that the photos are in")
        seen = StoreView(Store(store), photos)
        if not len(seen):
            raise ValueError(f"{store}: no image in it is done")
        with serve(seen, host, port) as server:
            if not is_loopback(host):
                errors.print(f"everybody who reaches {host} can see these photos", style="yellow")
            at = server.server_address[1]
            name = f"[{host}]" if ":" in host else host
            console.print(
                f"look at http://{name}:{at}/ (Ctrl-C ends)", style="bold", soft_wrap=True
            )
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                console.print("ended")
