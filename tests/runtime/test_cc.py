"""The C compiler: found, run, asked for the right instruction set, and its failures reported in one line."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from tests.support.programs import tiny

from smartmem.errors import CompilerError, InputError, RuntimeFailure
from smartmem.runtime import march
from smartmem.runtime.cache import Cache
from smartmem.runtime.cc import Compiler, build_library, compiler_key, find_compiler
from smartmem.runtime.plan import plan_source


@pytest.fixture
def compiler() -> Compiler:
    return find_compiler()


def sources(program) -> dict[str, str]:
    return {**program.sources, "plan.c": plan_source(program)}


def test_the_wheel_is_the_default(compiler, monkeypatch):
    monkeypatch.delenv("SMARTMEM_CC", raising=False)
    found = find_compiler()
    assert found.zig
    assert found.version().startswith("zig ")


def test_smartmem_cc(monkeypatch):
    monkeypatch.setenv("SMARTMEM_CC", f"{sys.executable} -m ziglang cc")
    assert find_compiler() == Compiler((sys.executable, "-m", "ziglang", "cc"), zig=True)
    assert find_compiler().version().startswith("zig ")
    monkeypatch.setenv("SMARTMEM_CC", "no-such-compiler")
    with pytest.raises(RuntimeFailure, match="SMARTMEM_CC: no program 'no-such-compiler'"):
        find_compiler()
    monkeypatch.setenv("SMARTMEM_CC", "false")
    with pytest.raises(RuntimeFailure, match="does not work as a C compiler"):
        find_compiler().macros("native")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")
def test_gcc(monkeypatch, tmp_path):
    monkeypatch.setenv("SMARTMEM_CC", "gcc")
    text = {"k.c": "void k(void *const *a, long b, long e, void *s) { (void)a; (void)b; (void)e; (void)s; }"}
    assert build_library(text, "native", Cache(tmp_path), find_compiler()).is_file()


def test_no_compiler(monkeypatch):
    monkeypatch.delenv("SMARTMEM_CC", raising=False)
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(RuntimeFailure, match="pip install ziglang, or set SMARTMEM_CC") as error:
        find_compiler()
    assert "\n" not in str(error.value)


def test_instruction_sets(compiler):
    assert "__AVX512F__" in compiler.macros("skylake-avx512")
    assert "__AVX512F__" in compiler.macros("x86-64-v4")
    v3 = compiler.macros("x86-64-v3")
    assert {"__AVX2__", "__FMA__"} <= v3
    assert "__AVX512F__" not in v3
    assert "__ARM_FEATURE_DOTPROD" in compiler.macros("cortex_a76")
    assert march.features(v3) == sorted({"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "popcnt"} | {
        "pni", "sse4_1", "sse4_2", "ssse3"
    })  # fmt: skip
    with pytest.raises(InputError, match=r"--march nonsense: the C compiler zig .* does not know it"):
        compiler.macros("nonsense")


def test_missing_features(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags\t\t: fpu avx2 fma\n")
    assert march.missing_features(["avx2", "avx512f"], info) == ["avx512f"]
    assert march.missing_features(["avx2"], info) == []
    assert march.missing_features(["avx2"], tmp_path / "none") == []


@pytest.mark.parametrize("name, machine", [("x86-64-v3", 62), ("cortex_a76", 183)])
def test_cross_compiling(compiler, session_cache, name, machine):
    library = build_library(sources(tiny(march=name)), name, session_cache, compiler)
    assert int.from_bytes(library.read_bytes()[18:20], "little") == machine  # e_machine of the ELF header


def test_objects_are_cached_one_by_one(compiler, tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    first = build_library(sources(tiny()), "native", cache, compiler)
    runs = []
    original = Compiler.run
    monkeypatch.setattr(Compiler, "run", lambda *args: runs.append(args[1]) or original(*args))
    assert build_library(sources(tiny()), "native", cache, compiler) == first
    assert not runs
    changed = {**sources(tiny()), "sum_0.c": tiny().sources["sum_0.c"] + "/* another */"}
    steps = []
    again = build_library(changed, "native", cache, compiler, lambda *step: steps.append(step))
    assert again != first
    assert len(runs) == 2  # one source, one link
    assert steps == [("compile", 3, 4), ("compile", 4, 4)]
    assert not list((tmp_path / "zig").iterdir())


def test_a_refused_source_is_kept(compiler, tmp_path):
    bad = '#include "simd.h"\nvoid k(void) { return 1 + ; }\n'
    with pytest.raises(CompilerError) as error:
        build_library({"k.c": bad}, "native", Cache(tmp_path), compiler)
    message = str(error.value)
    assert "the C compiler refuses k.c" in message
    assert "expected expression" in message
    assert "\n" not in message
    kept = Path(message.split("kept as ")[1].split(": ")[0])
    assert kept.read_text() == bad


def test_keys_differ(compiler):
    keys = {compiler_key(compiler, name) for name in ("native", "x86-64-v3", "x86-64-v4", "cortex_a76")}
    assert len(keys) == 4
