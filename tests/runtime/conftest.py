"""Fixtures of the runtime's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from smartmem.runtime import march
from smartmem.runtime.artifact import Program
from smartmem.runtime.cache import Cache
from smartmem.runtime.cc import build_library, find_compiler
from smartmem.runtime.model import Model
from smartmem.runtime.plan import plan_source


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def link(session_cache: Cache):
    def build(program: Program) -> Path:
        sources = {**program.sources, "plan.c": plan_source(program)}
        return build_library(sources, program.march, session_cache, find_compiler())

    return build


@pytest.fixture(scope="session")
def features() -> list[str]:
    return march.features(find_compiler().macros("native"))


@pytest.fixture
def make(link, features):
    """Program → Model."""
    models = []

    def build(program: Program, threads: int | None = 2) -> Model:
        models.append(Model(program, link(program), threads, features=features))
        return models[-1]

    yield build
    for model in models:
        model.close()
