"""Who is live at a moment, against the spans of the timeline."""

import numpy as np
import pytest

from jaxremat.report.moments import Moments


@pytest.fixture(scope="module")
def moments(plan):
    version = plan._planned
    return version, plan.report.planned.live, Moments(version, plan.report.planned.live, version.names)


def test_totals_are_the_live_bytes_of_each_step(moments):
    version, _, found = moments
    for step in range(0, version.timeline.schedule.size, 7):
        moment = found.at(step)
        assert moment.total_bytes == version.timeline.live_bytes[step]
        assert sum(holder.size_bytes for holder in moment.holders) + moment.rest_bytes == moment.total_bytes


def test_holders_are_the_largest_of_the_spans_that_are_live(moments):
    version, _, found = moments
    timeline = version.timeline
    moment = found.at(timeline.peak_step)
    _, first, last = timeline.spans.T
    live = (first <= timeline.peak_step) & (last >= timeline.peak_step)
    of_values = timeline.span_bytes[live].sum()
    named = sum(holder.size_bytes for holder in moment.holders if holder.kind != "resident")
    assert 0 < named <= of_values
    sizes = [holder.size_bytes for holder in moment.holders]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) <= 6


def test_what_is_alike_in_every_block_is_one_holder(moments):
    version, _, found = moments
    holders = found.at(version.timeline.peak_step).holders
    assert any("…" in holder.what or "block_" in holder.what for holder in holders)
    assert len({(holder.what, holder.kind) for holder in holders}) == len(holders)


def test_moments_follow_each_other_in_time(moments):
    version, live, found = moments
    last = version.timeline.schedule.size - 1
    steps = sorted({0, last // 2, last})
    times = [(found.at(step).begin_seconds, found.at(step).end_seconds) for step in steps]
    assert times[0][0] == 0.0 and times[-1][1] == pytest.approx(live.seconds)
    assert all(begin <= end for begin, end in times) and np.all(np.diff([begin for begin, _ in times]) >= 0)
