"""The register tiles as C functions, shared by all kernels of a file.

They compute rows of ``c (+)= sum over segments q and k of A * B`` where A is given by tables of row pointers, one table
per segment, `skip` apart, each good for k in [from, to), all moved by `shift` floats (to the batch entry).

    tile        a row of A is splatted, one float per k, times a few vectors of columns of B
    even        the same with one table for all segments: `skip` is how far rows move from one to the next
    across      the same where rows of A lie side by side: one float of each, and `step` floats on those of the next k
    grouped     several batch entries (groups of a convolution) side by side are the lanes of one vector

Elements of A and B may be four bytes each: the sums are integers then, which become floats at the end.
"""

from __future__ import annotations

from smartmem.schedule.finish import Ending

FEW = 4  # accumulators of a tile that has others for each of four steps: an addition takes as many cycles
ROWS_ACROSS = "(rows + SM_W - 1) / SM_W * SM_W"  # `step` of a block of rows packed across: whole vectors, as C


def _step(rows: int, vectors: int, b: str, a: str, row: str = "i", of_bytes: bool = False) -> str:
    """One step of k of the register tile: a row of B times a column of A, as a C block; `row` of the accumulators."""
    add = f"sums[{row}][j] = sm_dot4(sums[{row}][j], x, column[j])" if of_bytes else f"acc[{row}][j] += x * column[j]"
    return f"""{{
                f32v column[{vectors}];
#pragma GCC unroll {vectors}
                for (int j = 0; j < {vectors}; ++j) column[j] = sm_load({b} + j * SM_W);
#pragma GCC unroll {rows}
                for (int i = 0; i < {rows}; ++i) {{
                    const f32v x = sm_splat({a});
#pragma GCC unroll {vectors}
                    for (int j = 0; j < {vectors}; ++j) {add};
                }}
            }}"""


def _zeros(rows: int, vectors: int, name: str, kind: str, zero: str) -> str:
    """C text that declares accumulators."""
    return f"""\
    {kind} {name}[{rows}][{vectors}];
#pragma GCC unroll {rows}
    for (int i = 0; i < {rows}; ++i)
#pragma GCC unroll {vectors}
        for (int j = 0; j < {vectors}; ++j) {name}[i][j] = {zero};
"""


def _joined(rows: int, vectors: int) -> str:
    """C text that adds the sums of each fourth step."""
    return f"""\
#pragma GCC unroll {rows}
    for (int i = 0; i < {rows}; ++i)
#pragma GCC unroll {vectors}
        for (int j = 0; j < {vectors}; ++j)
            acc[i][j] = (acc[i][j] + acc[{rows} + i][j]) + (acc[2 * {rows} + i][j] + acc[3 * {rows} + i][j]);
"""


def _kept(rows: int, vectors: int) -> str:
    """C text that leaves the accumulators in c."""
    return f"""\
    if (first) {{
#pragma GCC unroll {rows}
        for (int i = 0; i < {rows}; ++i)
#pragma GCC unroll {vectors}
            for (int j = 0; j < {vectors}; ++j) sm_store(c + i * apart + j * SM_W, acc[i][j]);
    }} else {{
#pragma GCC unroll {rows}
        for (int i = 0; i < {rows}; ++i)
#pragma GCC unroll {vectors}
            for (int j = 0; j < {vectors}; ++j)
                sm_store(c + i * apart + j * SM_W, acc[i][j] + sm_load(c + i * apart + j * SM_W));
    }}"""


def tile_function(
    rows: int, vectors: int, prefetch: int, kind: str = "tile", ending: Ending | None = None, of_bytes: bool = False
) -> tuple[str, str]:
    """Name and text of the register-tile function: c[rows][vectors*SM_W] (+)= sum over segments and k of a * b.

    It fetches `prefetch` cache lines of what comes next per four steps of k. With an `ending` the sums are not left in
    c but go through it. `of_bytes`: each element of a and b is four bytes.
    """
    name = f"sm_{kind}_{rows}x{vectors}" + ("_bytes" if of_bytes else "") + (f"_p{prefetch}" if prefetch else "")
    fetch = f"for (int j = 0; j < {prefetch}; ++j) __builtin_prefetch(next + j * 16, 0, 2);"
    ahead = (
        f"""
#pragma GCC unroll {prefetch}
            {fetch}
            next += {16 * prefetch};"""
        if prefetch
        else ""
    )
    given = {
        "tile": "`segments` tables of row pointers, `skip` apart, each good for k in [from, to), all moved by `shift`",
        "even": "one table of row pointers for `segments`, `skip` apart, the first k in [from, to), moved by `shift`",
        "across": "rows side by side, `step` from one k to the next",
    }[kind]
    pointers = f"""\
const float *row[{rows}];
#pragma GCC unroll {rows}
    for (int i = 0; i < {rows}; ++i) row[i] = a[i] + shift;"""
    operand = "const float *const *a, long segments, long skip, long shift"
    loop, unrolled, rest = f"{pointers}\n    ", "row[i][k + u]", "row[i][k]"
    if kind == "tile":
        loop = f"for (long q = 0; q < segments; ++q, a += skip) {{\n        {pointers}"
    elif kind == "even":
        loop += "for (long q = 0; q < segments; ++q, from += skip, to += skip) {"
    else:
        operand, loop = "const float *a, long step", "{"
        unrolled, rest = "a[(k + u) * step + i]", "a[k * step + i]"
    held, row, joined = rows, "i", ""
    if rows * vectors <= FEW:  # else each sum would wait for its last step
        held, row, joined = 4 * rows, f"u * {rows} + i", _joined(rows, vectors)
    accumulators = _zeros(held, vectors, "acc", "f32v", "sm_splat(0.0f)")
    if of_bytes:
        accumulators = _zeros(held, vectors, "sums", "i32v", "sm_splat_i(0)")
        joined = _zeros(held, vectors, "acc", "f32v", "sm_to_float(sums[i][j])") + joined
    into, end = "float *c, long apart, int first", _kept(rows, vectors)
    if ending is not None:
        name, into, end = name + ending.suffix, ending.parameters, ending.text(rows)
    text = f"""\
/* acc[{rows}][{vectors}*SM_W] = sum over k of a[row][k] * b[k][column]; a:
   {given}. */
static __attribute__((noinline)) void {name}({operand}, long from, long to,
                                             const float *b, long stride, const float *next,
                                             {into}) {{
{accumulators}    (void)next;
    {loop}
        long k = from;
        for (; k + 4 <= to; k += 4, b += 4 * stride) {{{ahead}
#pragma GCC unroll 4
            for (int u = 0; u < 4; ++u) {_step(rows, vectors, "b + u * stride", unrolled, row, of_bytes)}
        }}
        for (; k < to; ++k, b += stride) {_step(rows, vectors, "b", rest, of_bytes=of_bytes)}
    }}
{joined}{end}
}}
"""
    return name, text


def grouped_tile_function(rows: int, size: int, lanes: int) -> tuple[str, str]:
    """Name and text of the tile whose lanes are groups of `size` columns, each with `size` steps of k per segment.

    Lane l = size*g + i of A is input i of group g. It is never splatted: accumulator j takes what it adds to output
    (i + j) % size of its group (B is packed so), and at the end accumulator j is turned by j lanes within the groups.
    """
    name = f"sm_grouped_{rows}x{size}"
    turned = []
    for j in range(size):
        index = ", ".join(str(lane - lane % size + (lane - j) % size) for lane in range(lanes))
        turned.append(f"__builtin_shufflevector(acc[{j}][i], acc[{j}][i], {index})" if j else "acc[0][i]")
    total = "\n            + ".join(turned)
    text = f"""\
/* c[{rows}][SM_W] = sum over segments of the groups' products; see `sm_tile` for a, segments, skip and shift. */
static __attribute__((noinline)) void {name}(const float *const *a, long segments, long skip, long shift,
                                             const float *b, float *c) {{
    f32v acc[{size}][{rows}];
#pragma GCC unroll {size}
    for (int j = 0; j < {size}; ++j)
#pragma GCC unroll {rows}
        for (int i = 0; i < {rows}; ++i) acc[j][i] = sm_splat(0.0f);
    for (long q = 0; q < segments; ++q, a += skip, b += {size} * SM_W) {{
        f32v x[{rows}];
#pragma GCC unroll {rows}
        for (int i = 0; i < {rows}; ++i) x[i] = sm_load(a[i] + shift);
#pragma GCC unroll {size}
        for (int j = 0; j < {size}; ++j) {{
            const f32v column = sm_load(b + j * SM_W);
#pragma GCC unroll {rows}
            for (int i = 0; i < {rows}; ++i) acc[j][i] += x[i] * column;
        }}
    }}
#pragma GCC unroll {rows}
    for (int i = 0; i < {rows}; ++i) {{
        const f32v total = {total};
        sm_store(c + i * SM_W, total);
    }}
}}
"""
    return name, text
