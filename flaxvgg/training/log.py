"""The course of a run: metrics.csv, a row for each step, and TensorBoard's file."""

import csv
from collections.abc import Mapping
from pathlib import Path

Row = dict[str, float | int | None]

_VALIDATION = ("validation_loss", "validation_metric", "validation_accuracy")
_COLUMNS = (
    "step",
    "epoch",
    "loss",
    "gradient_norm",
    "largest_score",
    "learning_rate",
    *_VALIDATION,
)


class Log:
    """Rows of metrics in a folder, of the steps up to `start`: later ones of a killed run go.

    A row is on disk when `add` returns. Those of the validation are empty but where there was one.
    """

    def __init__(self, out: Path, start: int):
        from tensorboardX import SummaryWriter

        self._path = out / "metrics.csv"
        self.rows = [row for row in read_rows(self._path) if (row["step"] or 0) <= start]
        self._file = self._path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, _COLUMNS)
        self._writer.writeheader()
        self._writer.writerows(self.rows)
        self._file.flush()
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=start + 1)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._board.close()

    def add(self, row: Mapping[str, float | int]) -> None:
        """Note a step, with a validation or without one."""
        full: Row = {name: row.get(name) for name in _COLUMNS}
        self.rows.append(full)
        self._writer.writerow(full)
        self._file.flush()
        for name, value in row.items():
            if name != "step":
                self._board.add_scalar(name, value, int(row["step"]))


def read_rows(path: Path) -> list[Row]:
    """The rows of metrics.csv; none where there is no such file, a torn last line is left out."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if None not in row.values()]
    return [{name: _value(name, text) for name, text in row.items()} for row in rows]


def _value(name: str, text: str) -> float | int | None:
    if not text:
        return None
    return int(text) if name in ("step", "epoch") else float(text)
