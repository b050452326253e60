"""Policies of names as they are written."""

import re

import jax
import pytest

from jaxremat.base.errors import ArgumentError, EmissionError
from jaxremat.base.policy import NamePolicy
from jaxremat.base.policy_texts import STYLES, text_of_policy

NAMES = ("context", "query_proj")


def test_jax_is_what_evaluates_to_the_policy():
    text = text_of_policy(NAMES, "jax")
    assert text == str(NamePolicy(NAMES))
    assert callable(eval(text, vars(jax.checkpoint_policies)))


def test_maxtext_takes_flags():
    assert text_of_policy(NAMES, "maxtext") == (
        "remat_policy=custom context=device query_proj=device decoder_layer_input=remat"
    )
    assert "remat" not in text_of_policy(("decoder_layer_input",), "maxtext").replace("remat_policy", "")


def test_axlearn_takes_an_expression_that_matches_the_names_alone():
    pattern = re.search(r'saved="(.*?)"', text_of_policy(("a.b", "c"), "axlearn"))[1].replace("\\\\", "\\")
    assert [bool(re.match(pattern, name)) for name in ("a.b", "c", "axb", "cc")] == [True, True, False, False]


def test_haliax_takes_a_list():
    assert 'save_block_internals=["context", "query_proj"]' in text_of_policy(NAMES, "haliax")


@pytest.mark.parametrize("style", STYLES)
def test_where_everything_is_saved_no_policy_is_needed(style):
    with pytest.raises(EmissionError, match="no policy is needed"):
        text_of_policy(None, style)


def test_unknown_styles_are_refused():
    with pytest.raises(ArgumentError, match="maxtext"):
        text_of_policy(NAMES, "levanter")
