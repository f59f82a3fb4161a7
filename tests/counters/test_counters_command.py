"""`smartmem counters`: the table, the JSON object, and what a user can get wrong."""

import json

import onnx.parser
import pytest
from typer.testing import CliRunner

from smartmem.cli import app
from smartmem.errors import InputError

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[4, 32, 32] x) => (float[4, 32, 32] y) {
  a = Relu (x)
  t = Transpose <perm = [0, 2, 1]> (a)
  y = Softmax <axis = 2> (t)
}
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "tiny.onnx"
    onnx.save(onnx.parser.parse_model(NETWORK), path)
    return str(path)


def test_the_table_says_that_it_is_modelled(model):
    result = CliRunner().invoke(app, ["counters", model, "--top", "2"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "modelled, not measured" in result.output
    for level in ("naive", "fuse", "eliminate", "layout", "full"):
        assert f"\n {level} " in result.output


def test_json_and_less_traffic_at_full(model):
    arguments = ["counters", model, "--json", "--profile", "mali-g57", "--memory", "texture", "--levels", "naive,full"]
    found = json.loads(CliRunner().invoke(app, arguments, catch_exceptions=False).output)
    assert (found["modelled"], found["device"], found["memory"]) == (True, "Mali-G57", "texture")
    naive, full = (found["levels"][level]["totals"] for level in ("naive", "full"))
    assert full["stored"] == 4 * 32 * 32 * 4 < naive["stored"]
    assert full["shared_misses"] < naive["shared_misses"]
    assert all(kernel["told"] for kernel in found["levels"]["full"]["kernels"])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--profile", "adreno-1", "choose one of adreno-540, adreno-740, mali-g57"),
        ("--levels", "best", "no level 'best'"),
        ("--levels", ",", "--levels is empty"),
    ],
)
def test_what_can_be_wrong_is_one_line(model, option, value, message):
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(app, ["counters", model, option, value], catch_exceptions=False)
