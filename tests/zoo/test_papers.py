"""The networks written from their papers: sizes and shapes without computing (on torch's meta device), and each special
part against its formula, written the slow way."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from smartmem.zoo.papers import (  # noqa: E402
    autoformer,
    biformer,
    common,
    conformer,
    crossformer,
    cswin,
    flatten_swin,
    smt,
)

IMAGE, LOGITS = (3, 224, 224), (1000,)
NETWORKS = [  # module, parameters, GMACs, input, output
    (autoformer, 22_891_432, 5.16, IMAGE, LOGITS),
    (biformer, 25_536_232, 4.46, IMAGE, LOGITS),
    (crossformer, 30_657_394, 4.91, IMAGE, LOGITS),
    (cswin, 34_643_304, 6.80, IMAGE, LOGITS),
    (flatten_swin, 29_192_384, 4.48, IMAGE, LOGITS),
    (smt, 22_550_952, 4.84, IMAGE, LOGITS),
    (conformer, 27_514_856, 10.26, (1000, 80), (249, 1000)),
]


@pytest.fixture(autouse=True)
def plain_torch() -> Any:
    """Seeded weights and inputs, no gradients."""
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(torch.allclose(one, other, rtol=1e-4, atol=1e-5))


@pytest.mark.parametrize("module, params, gmacs, inputs, outputs", NETWORKS, ids=lambda v: getattr(v, "__name__", None))
def test_parameters_macs_and_shapes_are_the_published_ones(
    module: Any, params: int, gmacs: float, inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        network = module.build().eval()
        with FlopCounterMode(display=False) as counter:
            result = network(torch.empty(2, *inputs))
    assert sum(p.numel() for p in network.parameters()) == params
    assert counter.get_total_flops() / 2 / 2e9 == pytest.approx(gmacs, rel=2e-3)  # 2 per product, batch 2
    assert tuple(result.shape) == (2, *outputs)


@pytest.mark.parametrize(
    "module, size, step",
    [(autoformer, 100, 16), (biformer, 256, 224), (crossformer, 0, 224), (cswin, 256, 224), (flatten_swin, -224, 224)]
    + [(smt, 225, 32)],
)
def test_impossible_size(module: Any, size: int, step: int) -> None:
    with pytest.raises(ValueError, match=f"a multiple of {step}, not {size}"):
        module.build(size)


def test_conformer_needs_some_frames() -> None:
    with pytest.raises(ValueError, match="at least 7 frames, not 6"):
        conformer.build(6)
    assert conformer.subsampled(7) == 1


# windows and heads


@pytest.mark.parametrize("rows, columns, height, width", [(4, 6, 2, 3), (4, 4, 4, 1), (6, 6, 1, 6), (3, 3, 3, 3)])
def test_windows_hold_their_positions(rows: int, columns: int, height: int, width: int) -> None:
    grid = torch.arange(2 * rows * columns * 5).reshape(2, rows, columns, 5)
    windows = common.split_windows(grid, height, width)
    per_row, per_image = columns // width, (rows // height) * (columns // width)
    for b, y, x in itertools.product(range(2), range(rows), range(columns)):
        window = b * per_image + y // height * per_row + x // width
        assert windows[window, y % height * width + x % width].equal(grid[b, y, x])
    assert common.merge_windows(windows, height, width, rows, columns).equal(grid)


def test_distant_groups_hold_every_step_th_position() -> None:
    grid = torch.arange(2 * 6 * 6 * 5).reshape(2, 6, 6, 5)
    groups = crossformer.split_distant(grid, 3)
    for b, y, x in itertools.product(range(2), range(6), range(6)):
        assert groups[b * 4 + y % 2 * 2 + x % 2, y // 2 * 3 + x // 2].equal(grid[b, y, x])
    assert crossformer.merge_distant(groups, 3, 6).equal(grid)


def test_heads_and_their_inverse() -> None:
    tokens = torch.randn(2, 5, 12)
    parts = common.split_heads(tokens, 3)
    assert parts[1, 2, 4].equal(tokens[1, 4, 8:])
    assert common.merge_heads(parts).equal(tokens)
    q, k, v = common.split_qkv(torch.cat([tokens, 2 * tokens, 3 * tokens], dim=-1), 3)
    assert q.equal(parts)
    assert k.equal(2 * parts)
    assert v.equal(3 * parts)


def test_relative_index_depends_on_the_offset_alone() -> None:
    index = common.relative_index(3)
    offsets: dict[int, tuple[int, int]] = {}
    for i, j in itertools.product(range(9), repeat=2):
        offset = (i // 3 - j // 3, i % 3 - j % 3)
        assert offsets.setdefault(int(index[i, j]), offset) == offset
    assert sorted(offsets) == list(range(25))


# AutoFormer


def test_autoformer_offset_indices() -> None:
    rows, columns = autoformer.offset_indices(16)
    for i, j in [(0, 0), (0, 255), (17, 18), (18, 17), (3, 250), (255, 0)]:
        dy, dx = (np.clip(b - a, -14, 14) for a, b in zip(divmod(i, 16), divmod(j, 16), strict=True))
        assert (rows[i + 1, j + 1], columns[i + 1, j + 1]) == (dy + 15, dx + 15)
    for index in (rows, columns):
        assert not index[0].any()
        assert not index[:, 0].any()
        assert index[1:, 1:].min() >= 1
        assert index.max() <= 29


def test_autoformer_attention_is_its_formula() -> None:
    attention = autoformer.Attention(heads=5)
    rows, columns = autoformer.offset_indices(3)
    x = torch.randn(2, 10, autoformer.DIM)
    q, k, v = common.split_qkv(attention.qkv(x), 5)
    rk, rv = (p.rows[rows] + p.columns[columns] for p in (attention.key_position, attention.value_position))
    keys, values = k[:, :, None] + rk, v[:, :, None] + rv  # one set per query
    p = torch.einsum("bhid,bhijd->bhij", q / 8, keys).softmax(-1)
    expected = attention.project(common.merge_heads(torch.einsum("bhij,bhijd->bhid", p, values)))
    assert close(attention(x, rows, columns), expected)


# BiFormer


def test_biformer_gathers_the_routed_regions() -> None:
    x = torch.randn(2, 5, 3, 4)
    routes = torch.tensor([[[0, 4], [1, 1], [2, 0], [4, 3], [3, 2]], [[4, 0], [3, 1], [2, 2], [1, 3], [0, 4]]])
    gathered = biformer.gather_regions(x, routes).reshape(2, 5, 2, 3, 4)
    for b, region, k in itertools.product(range(2), range(5), range(2)):
        assert gathered[b, region, k].equal(x[b, routes[b, region, k]])


def test_biformer_routing_to_all_regions_is_full_attention() -> None:
    attention = biformer.RoutingAttention(dim=64, side=14, topk=49)
    grid = torch.randn(2, 14, 14, 64)
    q, k, v = common.split_qkv(attention.qkv(grid).reshape(2, 196, 192), 2)
    out = common.merge_heads(common.attend(q, k, v)).reshape(2, 14, 14, 64)
    values = common.to_planes(common.merge_heads(v).reshape(2, 14, 14, 64))
    assert close(attention(grid), attention.project(out + common.to_grid(attention.lepe(values))))


def test_biformer_routing_depends_on_the_data() -> None:
    attention = biformer.RoutingAttention(dim=64, side=14, topk=4)
    grid = torch.randn(1, 14, 14, 64)
    changed = grid.clone()
    changed[:, 12:, 12:] += 1
    far = (attention(changed) - attention(grid))[:, :10, :10].abs().amax(dim=-1).flatten() > 1e-6
    assert 0 < int(far.sum()) < 100  # the regions that look, or looked, at the changed one


# CrossFormer


def test_crossformer_bias_is_the_mlp_of_the_offset() -> None:
    bias = crossformer.DynamicPositionBias(dim=192, heads=6)
    result = bias()
    for i, j in [(0, 0), (0, 48), (48, 0), (10, 37)]:
        offset = torch.tensor([i // 7 - j // 7, i % 7 - j % 7]).float()
        assert close(result[:, i, j], bias.layers(bias.enter(offset)))


def test_crossformer_embedding_puts_scales_side_by_side() -> None:
    embed = crossformer.CrossScaleEmbed(3, 96, (4, 8, 16, 32), stride=4)
    assert [conv.out_channels for conv in embed.convs] == [48, 24, 12, 12]
    x = torch.randn(2, 3, 64, 64)
    assert close(common.to_planes(embed(x))[:, 48:72], embed.convs[1](x))


# CSWin


def test_cswin_block_sees_a_cross() -> None:
    block = cswin.Block(dim=64, heads=2, side=14, stripe=2)
    grid = torch.randn(1, 14, 14, 64)
    changed = grid.clone()
    changed[0, 5, 9] = torch.randn(64)
    seen = (block(changed) - block(grid))[0].abs().amax(dim=-1) > 1e-6
    for y, x in itertools.product(range(14), repeat=2):
        assert seen[y, x] == (y // 2 == 2 or x // 2 == 4)


# FLatten-Swin


def test_focus_keeps_the_length() -> None:
    x = torch.rand(3, 7) + 0.1
    focused = flatten_swin.focus(x)
    assert close(focused.norm(dim=-1), x.norm(dim=-1))
    assert close(flatten_swin.focus(torch.tensor([1.0, 2.0])), torch.tensor([0.27735, 2.2188]))


def test_linear_attention_is_the_quadratic_one() -> None:
    attention = flatten_swin.LinearAttention(dim=64, heads=2, side=4)
    grid = torch.randn(2, 4, 4, 64)
    q, k, v = attention.qkv(grid.reshape(2, 16, 64)).split(64, dim=-1)
    scale = torch.nn.functional.softplus(attention.scale)
    q = flatten_swin.focus((q.relu() + 1e-6) / scale)
    k = flatten_swin.focus(((k + attention.position).relu() + 1e-6) / scale)
    q, k, heads = (common.split_heads(x, 2) for x in (q, k, v))
    weights = q @ k.transpose(2, 3)
    out = common.merge_heads(weights / weights.sum(dim=-1, keepdim=True) @ heads)
    per_head = v.reshape(2, 4, 4, 2, 32).permute(0, 3, 4, 1, 2).flatten(0, 1)
    local = attention.local(per_head).reshape(2, 2, 32, 16).permute(0, 3, 1, 2).flatten(2)
    assert close(attention(grid), attention.project(out + local).reshape(2, 4, 4, 64))


@pytest.mark.parametrize("y, x", [(0, 0), (5, 9), (13, 13), (10, 11)])
def test_shifted_windows_do_not_wrap_around(y: int, x: int) -> None:
    attention = flatten_swin.WindowAttention(dim=64, heads=2, side=14, shift=3)
    grid = torch.randn(2, 14, 14, 64)
    changed = grid.clone()
    changed[1, y, x] += 1
    seen = (attention(changed) - attention(grid)).abs().amax(dim=-1) > 1e-6
    assert not seen[0].any()
    for i, j in itertools.product(range(14), repeat=2):
        assert seen[1, i, j] == ((i + 4) // 7 == (y + 4) // 7 and (j + 4) // 7 == (x + 4) // 7)


# SMT


def test_smt_aggregates_one_channel_of_each_scale() -> None:
    modulation = smt.Modulation(dim=32, side=6).eval()
    torch.nn.init.zeros_(modulation.scales.weight)
    seen = []
    hook = modulation.aggregate[0].register_forward_hook(lambda _, inputs, output: seen.append(output))
    grid = torch.randn(1, 6, 6, 32)
    modulation(grid)
    modulation.scales.bias[2 * 8 + 5] += 1  # channel 5 of the third scale
    modulation(grid)
    hook.remove()
    changed = (seen[1] - seen[0]).abs().amax(dim=(0, 2, 3)) > 1e-6
    assert changed.nonzero().flatten().tolist() == list(range(5 * 8, 6 * 8))


def test_smt_stage_three_takes_turns() -> None:
    with torch.device("meta"):
        network = smt.build()
    kinds = [[type(block.mixer).__name__ for block in stage.blocks] for stage in network.stages]
    assert kinds[0] == ["Modulation"] * 3
    assert kinds[1] == ["Modulation"] * 4
    assert kinds[2] == ["Modulation", "Attention"] * 9
    assert kinds[3] == ["Attention"] * 2


# Conformer


def test_relative_shift() -> None:
    x = torch.randn(2, 3, 5, 9)
    shifted = conformer.relative_shift(x)
    for i, j in itertools.product(range(5), repeat=2):
        assert shifted[:, :, i, j].equal(x[:, :, i, 4 - i + j])


def test_conformer_attention_is_its_formula() -> None:
    attention = conformer.Attention(frames=6).eval()
    x = torch.randn(2, 6, conformer.DIM)
    normed = attention.norm(x)
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    q, k, v = (common.split_heads(layer(normed), 4) for layer in layers)
    sinusoids = dict(zip(range(5, -6, -1), conformer.relative_positions(6), strict=True))
    scores = torch.empty(2, 4, 6, 6)
    for i, j in itertools.product(range(6), repeat=2):
        r = attention.position(sinusoids[i - j]).reshape(4, 64)
        content = (q[:, :, i] + attention.content_bias[:, 0]) * k[:, :, j]
        position = (q[:, :, i] + attention.position_bias[:, 0]) * r
        scores[:, :, i, j] = (content + position).sum(dim=-1) / 8
    expected = attention.project(common.merge_heads(scores.softmax(-1) @ v))
    assert close(attention(x), expected)
    assert close(attention.train()(x), expected)


def test_conformer_projects_positions_again_when_the_weight_changed() -> None:
    attention = conformer.Attention(frames=6).eval()
    x = torch.randn(1, 6, conformer.DIM)
    before = attention(x)
    attention.position.weight.mul_(3)
    after = attention(x)
    assert not close(before, after)
    assert close(after, attention.train()(x))


def test_sinusoids_of_offsets() -> None:
    table = conformer.relative_positions(4)
    assert table.shape == (7, conformer.DIM)
    assert close(table[0, :2], torch.tensor([np.sin(3.0), np.cos(3.0)], dtype=torch.float32))
    assert close(table[3], torch.tensor([0.0, 1.0] * (conformer.DIM // 2)))


# export


@pytest.mark.filterwarnings("ignore")  # torch's own deprecations
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: biformer.RoutingAttention(64, 14, 4), (1, 14, 14, 64)),
        (lambda: flatten_swin.WindowAttention(64, 2, 14, 3), (1, 14, 14, 64)),
        (lambda: conformer.Attention(9), (1, 9, 256)),
    ],
    ids=["routing", "shifted", "relative"],
)
def test_exports_agree_with_torch(make: Any, shape: tuple[int, ...], dynamo: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    module, x = make().eval(), torch.randn(shape)
    file = tmp_path / "part.onnx"
    torch.onnx.export(module, (x,), file, dynamo=dynamo, input_names=["x"], verbose=False)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": x.numpy()})
    assert close(torch.from_numpy(result), module(x))
