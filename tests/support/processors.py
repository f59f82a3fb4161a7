"""Whether this machine runs code for other x86 processors."""

from __future__ import annotations

import pytest

from smartmem.runtime.march import host_family, missing_features

NEEDS = {"x86-64-v4": ["avx512f"], "x86-64-v3": ["avx2"]}


def skip_unless_it_runs(march: str) -> None:
    """Skips a test of code for the x86 processors `march` where it cannot run."""
    if host_family() != "x86_64" or missing_features(NEEDS.get(march, [])):
        pytest.skip(f"this machine does not run {march}")
