"""The process's peak memory follows what it allocates."""

from __future__ import annotations

import numpy as np

from smartmem.runtime.peak import peak_bytes


def test_peak_grows_and_stays():
    size = 64 << 20
    before = peak_bytes()
    np.ones(before + size, np.uint8)  # touched, and freed at once
    assert before > 1 << 20
    assert peak_bytes() > before + size // 2
