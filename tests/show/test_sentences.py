"""What a report says in words."""

import dataclasses

import pytest

from jaxremat.compiled.compile import MemoryReport
from jaxremat.report.report import LoopReport, Numbers
from jaxremat.report.rows import Total
from jaxremat.show.sentences import facts_of, loop_sentence, rest_sentence, total_sentence

COMPILED = MemoryReport("h200", 1024, 2048, 4096, 0, 7168, 0.0)
NUMBERS = Numbers(2**30, 2**29, 2**31, 0.125, COMPILED, 2, 1.5, "auto", "h200", "schedule")


def headline(**changes):
    return {fact.label: f"{fact.value} | {fact.note}" for fact in facts_of(dataclasses.replace(NUMBERS, **changes))}


def test_the_headline_names_shares_times_and_how_it_was_made():
    facts = headline()
    assert facts["budget"] == "1.0 GiB | 50% of 2.0 GiB as written"
    assert facts["extra time"] == "12.5% | by the cost model of h200"
    assert facts["solved in"] == "1.5 s | solver auto, 2 compilations, emitted as schedule"
    assert facts["compiled"].startswith("7.0 KiB | on h200, arguments 1.0 KiB, outputs 2.0 KiB, temporaries 4.0 KiB")


def test_what_was_not_compiled_says_how_to():
    assert headline(compiled=None)["compiled"].startswith("not yet | verify=")


@pytest.mark.parametrize(("overhead", "told"), [(-0.05, True), (-0.0001, False), (0.0, False)])
def test_less_time_than_as_written_is_told_in_words(overhead, told):
    assert ("faster than as written" in headline(overhead=overhead)["extra time"]) == told


def test_one_compilation_is_one():
    assert "1 compilation," in headline(compilations=1)["solved in"]
    assert "left as written: it fits" in headline(form="plain")["solved in"]
    assert "nothing runs again but for chunks" in headline(form="chunks")["solved in"]


LOOP = LoopReport("GPT/scan", 12, "scan", 0, ((8, 0, 3), (4, 2, 0)))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "loop over 12 iterations (GPT/scan): 8 iterations: 3 of their equations run again,"
            " then 4 iterations in 2 segments, each run again from its carry",
        ),
        ({"kind": "cond", "branch": 1}, "branch 1 of GPT/scan: 3 of its equations run again"),
        ({"kind": "shard_map", "place": ""}, "inside a shard_map: 3 of its equations run again"),
        (
            {"kind": "cond", "place": "", "pieces": ((1, 0, 0),)},
            "branch 0 of a conditional: all that its backward needs is kept",
        ),
    ],
)
def test_loops_are_told_by_what_runs_again(changes, sentence):
    assert loop_sentence(dataclasses.replace(LOOP, **changes)) == sentence


def test_totals_and_rests_count_values():
    assert total_sentence(Total("defer", 1, 2**20)) == "made in the backward only: 1 value, 1.0 MiB"
    assert rest_sentence((2, 2**10)) == "and 2 smaller values, 1.0 KiB" and rest_sentence((0, 0)) == ""
