"""What every plan says about itself, from its report."""

from __future__ import annotations

import abc
import functools
from pathlib import Path
from typing import Any

from jaxremat.report.parts import Part, Version
from jaxremat.report.records import as_frame, records_of
from jaxremat.report.report import Numbers, Report, decided
from jaxremat.report.values import Value
from jaxremat.show.display import show
from jaxremat.show.html import to_html
from jaxremat.show.terminal import to_rich
from jaxremat.show.text import to_text


class Described(abc.ABC):
    """A plan that can be displayed: as text, in a notebook, as records, value by value."""

    @property
    @abc.abstractmethod
    def numbers(self) -> Numbers:
        """The headline's numbers."""

    @property
    @abc.abstractmethod
    def report(self) -> Report:
        """All that there is to say about the plan, as data."""

    @property
    @abc.abstractmethod
    def _planned(self) -> Version:
        """The program as planned."""

    @property
    def saved(self) -> tuple[Value, ...]:
        """What is kept for the backward, of a step over its highest peak: one record per value, in program order."""
        return tuple(value for value in self._values if value.saved)

    @property
    def recomputed(self) -> tuple[Value, ...]:
        """What is read there and computed again."""
        return tuple(value for value in self._values if value.action == "recompute")

    def summary(self) -> dict[str, Any]:
        """The plan's numbers as plain values, for experiment trackers and JSON."""
        return self.numbers.summary()

    def table(self) -> Any:
        """What becomes of every value that is read late: a pandas frame where pandas is installed, else dicts."""
        return as_frame(records_of(self._values))

    def show(self, file: str | Path | None = None) -> None:
        """Displays the plan: in a notebook as `plan` does, in a terminal as text, or into an HTML file.

        Args:
          file: where to write a page that needs nothing else; None to display.
        """
        show(self._repr_html_, self.__str__, file)

    def __str__(self) -> str:
        return to_text(self.report)

    def __rich__(self) -> Any:
        return to_rich(str(self))

    def __treescope_repr__(self, path: str | None, render: Any) -> Any:
        """One line; treescope puts below it what notebooks show."""
        from treescope import rendering_parts

        return rendering_parts.text(repr(self))

    def _repr_html_(self) -> str:
        return to_html(self.report)

    @functools.cached_property
    def _decided(self) -> dict[Part, dict[int, Value]]:
        return decided(self._planned)

    @functools.cached_property
    def _values(self) -> tuple[Value, ...]:
        return tuple(value for values in self._decided.values() for value in values.values())
