"""What tests/mutations.py breaks is there to be broken; CI breaks it, which takes minutes."""

import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("mutations", Path(__file__).with_name("mutations.py"))
mutations = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(mutations)


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda m: f"{m.file}: {m.line}")
def test_the_line_is_there_and_changes(mutation):
    assert mutation.line in (mutations.PACKAGE / mutation.file).read_text()
    assert mutation.line != mutation.broken
    assert (mutations.ROOT / mutation.tests).is_file()
