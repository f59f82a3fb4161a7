"""`smartmem.compile` and `smartmem.load` on a fake compiler."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
from tests.support import fake_compiler
from tests.support.programs import expected

import smartmem
import smartmem.compiler
from smartmem.errors import CompilerError, InputError, ModelError
from smartmem.runtime import archive, cc, fingerprint, remember

X = np.linspace(-1, 1, 40, dtype=np.float32).reshape(5, 8)


def test_compile_and_call(model_file):
    model = smartmem.compile(model_file, threads=2)
    np.testing.assert_allclose(model(X), expected(X).sum(1), rtol=1e-5)
    assert "Transpose" in model.explain()
    assert model.threads == 2


def test_the_second_time_comes_from_the_cache(model_file, monkeypatch):
    steps = []
    first = smartmem.compile(model_file, progress=lambda *step: steps.append(step))
    assert ("passes", 1, 1) in steps
    assert ("compile", 4, 4) in steps
    monkeypatch.setattr(smartmem.compiler, "build_program", None)
    second = smartmem.compile(str(model_file))
    np.testing.assert_array_equal(first(X), second(X))
    monkeypatch.setattr(smartmem.compiler, "build_program", fake_compiler.build_program)
    assert smartmem.compile(model_file, {"x": (3, 8)})(X[:3]).shape == (3,)
    assert smartmem.compile(model_file, level="naive").program.level == "naive"


def test_weights_are_mapped_from_the_cache(model_file):
    for _ in range(2):
        model = smartmem.compile(model_file)
        assert model.program.weights
        for name, weight in model.program.weights.items():
            assert not weight.flags.owndata
            assert not weight.flags.writeable
            assert model._weights[name] is weight


def test_a_damaged_entry_of_the_cache_is_made_again(model_file, tmp_path):
    smartmem.compile(model_file)
    (entry,) = (tmp_path / "cache" / "models").rglob("*.smem")
    entry.write_bytes(b"damaged")
    np.testing.assert_allclose(smartmem.compile(model_file)(X), expected(X).sum(1), rtol=1e-5)
    assert entry.stat().st_size > 1000


def test_without_a_cache(model_file, monkeypatch):
    monkeypatch.setenv("SMARTMEM_CACHE", "off")
    model = smartmem.compile(model_file)
    np.testing.assert_allclose(model(X), expected(X).sum(1), rtol=1e-5)
    model.save(model_file.with_suffix(".smem"))
    loaded = smartmem.load(model_file.with_suffix(".smem"))
    np.testing.assert_array_equal(loaded(X), model(X))


def test_a_full_disk(model_file, monkeypatch):
    """What cannot be stored, neither in the cache nor in a temporary folder, runs from memory."""

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archive, "write", full)
    with pytest.warns(RuntimeWarning, match="No space left"):
        model = smartmem.compile(model_file)
    np.testing.assert_allclose(model(X), expected(X).sum(1), rtol=1e-5)


def test_errors(model_file, tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        smartmem.compile(tmp_path / "none.onnx")
    with pytest.raises(InputError, match="no level 'fast'; choose one of naive"):
        smartmem.compile(model_file, level="fast")
    with pytest.raises(InputError, match="--march nonsense"):
        smartmem.compile(model_file, march="nonsense")
    assert not list((tmp_path / "cache").rglob("*.smem"))


def test_a_failed_compilation_leaves_nothing(model_file, monkeypatch, tmp_path):
    def broken(*args, **options):
        program = fake_compiler.build_program(*args, **options)
        program.sources["sum_0.c"] = "this is no C"
        return program

    monkeypatch.setattr(smartmem.compiler, "build_program", broken)
    with pytest.raises(CompilerError, match=r"refuses sum_0\.c"):
        smartmem.compile(model_file)
    assert not list((tmp_path / "cache").rglob("*.smem"))
    assert not list((tmp_path / "cache" / "zig").iterdir())


def test_a_cached_model_needs_neither_onnx_nor_the_compiler(model_file):
    smartmem.compile(model_file)
    code = (
        f"import sys, smartmem; m = smartmem.compile({str(model_file)!r}); print({{'onnx', 'rich'}} & {{*sys.modules}})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_nothing_is_read_twice(model_file, monkeypatch):
    monkeypatch.setattr(remember, "_SETTLED_NS", 0)
    for _ in range(2):  # in the second the stored model's sums are remembered
        smartmem.compile(model_file)
    for module, name in ((fingerprint, "_model_facts"), (cc, "compiler_key"), (archive, "_compared")):
        monkeypatch.setattr(module, name, None)
    np.testing.assert_allclose(smartmem.compile(model_file)(X), expected(X).sum(1), rtol=1e-5)


def test_a_cached_model_waits_for_little(model_file):
    smartmem.compile(model_file)
    code = (
        "import sys, smartmem\n"
        f"m = smartmem.load({str(model_file)[:-5] + '.smem'!r})\n"
        "print({'zipfile', 'subprocess', 'tempfile', 'concurrent.futures', 'logging', 'base64'} & {*sys.modules})"
    )
    smartmem.compile(model_file).save(model_file.with_suffix(".smem"))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
