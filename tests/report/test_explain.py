"""What `explain` prints."""

from __future__ import annotations

import json

import pytest
from tests.support.programs import REPORT

from smartmem.report.explain import TOTALS, render, with_levels
from smartmem.report.tables import count, dims, size


def test_every_part_of_the_report_is_shown():
    text = render(REPORT)
    for part in (
        "tiny, level full",
        "Layout operators of the input: 2",
        'Transpose "t" 8x5: in the loads of scale_0 (x)',
        "before  [i, j]",
        "after   [j, i]",
        'Reshape "r" 40: stays as a copy — it is an output',
        "[hoisted]",  # not taken for markup
        "Exp, Mul",
        "NonZero",
        "a reduction follows",
        "row-major",
        "Totals: 4 operators, 2 of them layout -> 2 kernels, 1 copies (160 B), 0 host steps",
        "Memory: activations 160 B (at least 160 B are live at once)",
    ):
        assert part in text, part
    assert "\x1b" not in text  # no colours in a file


def test_missing_parts_are_left_out():
    assert render({"model": "m", "level": "naive"}).strip() == "m, level naive"
    assert render({})


def test_levels():
    levels = {"naive": {"operators": 9, "kernels": 9}, "full": REPORT["totals"]}
    result = with_levels(REPORT, levels)
    assert json.loads(json.dumps(result)) == result
    assert result["totals"]["naive"] == {**dict.fromkeys(TOTALS, 0), "operators": 9, "kernels": 9}
    assert result["totals"]["full"] == REPORT["totals"]
    assert result["kernels"] == REPORT["kernels"]


@pytest.mark.parametrize(
    "function, value, text",
    [
        (count, 999, "999"),
        (count, 1234567, "1.23M"),
        (count, 4.5e12, "4.5T"),
        (size, 12, "12 B"),
        (size, 1536, "1.5 KiB"),
        (dims, [1, 3], "1x3"),
        (dims, [], "scalar"),
        (dims, None, "?"),
    ],
)
def test_numbers(function, value, text):
    assert function(value) == text
