"""What becomes of every value as plain records: dicts, or a pandas frame."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterable
from typing import Any

from jaxremat.report.values import Value


def records_of(values: Iterable[Value]) -> list[dict[str, Any]]:
    """One dict per value: the fields of `Value`, and `total_bytes`."""
    return [{**dataclasses.asdict(value), "total_bytes": value.total_bytes} for value in values]


def as_frame(records: list[dict[str, Any]]) -> Any:
    """The records as a pandas frame where pandas is installed, else as they are."""
    if importlib.util.find_spec("pandas") is None:
        return records
    import pandas

    return pandas.DataFrame.from_records(records)
