"""
Make the tables.  One has the medians and their ratios, and the other the time and the memory that
the runs took.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from bench.rows import Measure, Row
from bench.servers import Server

__all__ = ["Results"]

# The number of a row, the label of its variant, and the index of a figure.
Key = tuple[int, str, int]


def number(value: float) -> str:
    """
    @return: the value as text, with two decimals below 10, one below 100, and none from 100 on.
    """
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


class Results:
    """
    All results of the benchmark.
    """

    def __init__(self, rows: list[Row], servers: list[type[Server]]) -> None:
        self._rows = rows
        self._servers = servers
        self._measures: dict[tuple[int, str, str], list[Measure]] = defaultdict(list)
        self._failures: dict[tuple[int, str], str] = {}
        self.absent: dict[str, str] = {}

    def add(self, row: Row, server: str, measures: list[Measure]) -> None:
        """
        Add the results of one run.
        """
        for measure in measures:
            self._measures[row.number, measure.label, server].append(measure)

    def fail(self, row: Row, server: str, reason: str) -> None:
        """
        Record that a run has failed.  The row then shows no figures of this server.
        """
        self._failures[row.number, server] = reason

    def hasFailed(self, row: Row, server: str) -> bool:
        """
        @return: whether a run of this row with this server has failed.
        """
        return (row.number, server) in self._failures

    def failures(self, server: str) -> list[str]:
        """
        @return: a sentence for each failed run of a server.
        """
        return [
            f"{server}, row {number}: {reason}"
            for (number, name), reason in self._failures.items()
            if name == server
        ]

    def empty(self) -> list[Row]:
        """
        @return: the rows that no server could run.
        """
        known = {number for number, *_ in [*self._measures, *self._failures]}
        return [row for row in self._rows if row.number not in known]

    def _labels(self, row: Row) -> list[str]:
        found: dict[str, None] = {}
        for number, label, _ in self._measures:
            if number == row.number:
                found[label] = None
        return list(found)

    def _value(self, row: Row, label: str, index: int, server: str) -> float | None:
        measures = self._measures.get((row.number, label, server))
        if not measures or self.hasFailed(row, server):
            return None
        return median(each.figures[index].value for each in measures)

    def _cell(self, row: Row, label: str, index: int, server: str, ours: float | None) -> str:
        if self.hasFailed(row, server):
            reason = self._failures[row.number, server]
            return "wrong bytes" if reason.startswith("wrong bytes") else "failed"
        value = self._value(row, label, index, server)
        if value is None:
            return "-"
        text = number(value)
        if ours is not None and server != "pop3svc" and value > 0:
            text += f" (×{number(ours / value)})"
        note = self._measures[row.number, label, server][-1].note
        return f"{text}, {note}" if note and not index else text

    def main(self) -> str:
        """
        @return: the table of figures.
        """
        here = [each for each in self._servers if each.name not in self.absent]
        peers = [each.name for each in here if each.isPeer]
        lines = [["", "what", "unit", *(each.title for each in here), "best peer"]]
        for row in self._rows:
            for label in self._labels(row):
                some = next(
                    found[0]
                    for (number, name, _), found in self._measures.items()
                    if (number, name) == (row.number, label)
                )
                for index, figure in enumerate(some.figures):
                    ours = self._value(row, label, index, "pop3svc")
                    values = [self._value(row, label, index, each) for each in peers]
                    known = [each for each in values if each is not None and each > 0]
                    best = ""
                    if known and ours is not None:
                        chosen = min(known) if figure.lowerIsBetter else max(known)
                        best = f"×{number(ours / chosen)}"
                    lines.append(
                        [
                            str(row.number),
                            f"{row.title}: {label}" if label else row.title,
                            figure.unit,
                            *(self._cell(row, label, index, each.name, ours) for each in here),
                            best,
                        ]
                    )
        return _markdown(lines)

    def machine(self) -> str:
        """
        @return: the table of the time, the processor time and the memory that the runs took.
        """
        lines = [
            [
                *("", "variant", "server", "wall s", "server CPU s", "server MiB"),
                *("load CPU s", "load ÷ wall", "load ÷ server CPU"),
            ]
        ]
        for row in self._rows:
            for label in self._labels(row):
                for server in self._servers:
                    spans = [
                        each.span
                        for each in self._measures.get((row.number, label, server.name), [])
                    ]
                    if not spans:
                        continue
                    wall = median(each.wall for each in spans)
                    cpu = median(each.server for each in spans)
                    client = median(each.client for each in spans)
                    lines.append(
                        [
                            *(str(row.number), label, server.title, f"{wall:.3f}", f"{cpu:.3f}"),
                            f"{median(each.memory for each in spans) / (1 << 20):.0f}",
                            *(f"{client:.3f}", f"{100 * client / wall:.0f} %"),
                            number(client / cpu) if cpu else "-",
                        ]
                    )
        return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| "
        + " | ".join(each.ljust(width) for each, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
