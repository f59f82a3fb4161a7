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
        "1 became part of loads:",
        "scale_0 loads x: Transpose",
        "before  [i, j]",
        "after   [j, i]",
        "1 stay as copies:",
        'Reshape "r" 40 — it is an output',
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


def test_verbose_lists_every_operator():
    text = render(REPORT, verbose=True)
    assert 'Transpose "t" 8x5: became part of loads\n      scale_0 loads x\n          before  [i, j]' in text
    assert 'Reshape "r" 40: stays as a copy — it is an output' in text


def test_equal_maps_are_shown_once():
    place = {"access": "load", "before": "Relu [i, j] -> Transpose [j, i]", "after": "[j, i]", "axes": "i<8 j<5"}
    entries = [
        {
            "node": f"t{n}",
            "op": "Transpose",
            "shape": [8, 5],
            "fate": "load",
            "places": [{"kernel": f"k{n}", "tensor": f"x{n}", **place}],
        }
        for n in range(5)
    ]
    folded = {"node": "c", "op": "Reshape", "shape": [4], "fate": "folded", "reason": "its inputs are constant"}
    text = render({"layout": [*entries, folded, {**folded, "op": "Concat"}]})
    assert "k0 loads x0, k1 loads x1, k2 loads x2, and 2 more like it: Transpose each" in text
    assert text.count("before") == 1
    assert "after   [j, i]   i<8 j<5" in text
    assert "2, its inputs are constant: Reshape, Concat" in text


def test_neighbours_are_grouped_by_reason():
    pairs = [{"first": f"a{n}", "second": f"b{n}", "reason": "they differ", "mapping": "x -> y"} for n in range(5)]
    text = render({"apart": pairs})
    assert "Neighbours that stay apart: 5" in text
    assert text.count("they differ") == 1
    assert "a2 -> b2 ..." in text


def test_classes():
    classes = {"operators": {"ILD & Variable": 2, "ILI & Fixed": 1}, "remaining": {"ILD & Variable": 2}}
    text = render({"classes": classes})
    assert "Classes: 2 ILD & Variable, 1 ILI & Fixed; the pair table leaves 2 ILD & Variable" in text


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
