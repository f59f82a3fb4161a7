"""`python -m smartmem.bench.cold` on a tiny model."""

from __future__ import annotations

import pytest
from tests.support import fake_compiler

from smartmem.bench import cold


@pytest.fixture
def ours(tmp_path, monkeypatch):
    monkeypatch.setenv("SMARTMEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cold, "_SETTLE_SECONDS", 0)
    monkeypatch.setattr(cold, "_WAYS", {way: cold._WAYS[way] for way in ("smartmem, .onnx", "smartmem, .smem")})
    return fake_compiler.write_model(tmp_path / "tiny.onnx")


def test_a_line_for_each_way(ours, capsys):
    cold.main([str(ours), "--threads", "1", "--processes", "1", "--shape", "x=5,8"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:22].strip() for line in lines] == ["", "smartmem, .onnx", "smartmem, .smem"]
    for line in lines[1:]:
        median, fastest, slowest, peak = map(float, line[22:].split())
        assert 0 < fastest <= median <= slowest
        assert peak > 10


def test_errors_are_one_line(ours, tmp_path, monkeypatch):
    for arguments in ([str(tmp_path / "none.onnx")], [str(ours), "--processes", "0"]):
        with pytest.raises(SystemExit, match=r"^error: [^\n]+$"):
            cold.main(arguments)
    monkeypatch.setitem(cold._WAYS, "smartmem, .smem", "raise ValueError('a peer fails')")
    with pytest.raises(SystemExit, match=r"^error: smartmem, .smem: ValueError: a peer fails$"):
        cold.main([str(ours), "--processes", "1", "--shape", "x=5,8"])
