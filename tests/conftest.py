"""What tests of every folder share: the first OpenCL device (PoCL in CI), and whether golden files are rewritten."""

from __future__ import annotations

import pytest

from smartmem.device import Device
from smartmem.errors import SmartmemError
from smartmem.runtime.opencl.devices import select


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write tests/golden/ anew")


@pytest.fixture(scope="session")
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(scope="session")
def device() -> Device:
    """The first OpenCL device, or a reason why there is none."""
    try:
        found = select("opencl")
    except SmartmemError as error:
        pytest.skip(str(error))
    assert found is not None
    return found
