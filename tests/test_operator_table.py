"""docs/operators.md says what the code does."""

from __future__ import annotations

import runpy
from pathlib import Path

import onnx
import pytest

ROOT = Path(__file__).parent.parent


def test_the_table_is_current() -> None:
    text = (ROOT / "docs" / "operators.md").read_text()
    if f"onnx {onnx.__version__} " not in text:
        pytest.skip("the table was made with another onnx")
    assert runpy.run_path(str(ROOT / "tools" / "operator_table.py"))["table"]() == text
