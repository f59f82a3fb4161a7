"""PTX of the OpenCL dialect becomes CUDA's."""

import shutil
import subprocess

import pytest

from smartmem.codegen.ptx_marks import ONLY_HIDDEN
from smartmem.runtime.cuda.ptx import count_parameters, for_cuda, is_ptx

OPENCL = """//
.version 7.0
.target sm_75, texmode_independent
.address_size 64

.global .samplerref sm_texel = { addr_mode_0 = wrap, addr_mode_1 = wrap, filter_mode = nearest };

.entry copy_1(
\t.param .surfref copy_1_param_0,
\t.param .texref copy_1_param_1,
\t.param .u64 .ptr .global .align 2 copy_1_param_2,
\t.param .u64 .ptr .shared .align 16 copy_1_param_3
)
.reqntid 64, 1, 1
{
\t.reg .f32 \t%f<5>;
\t.reg .b32 \t%r<12>;
\t.reg .b64 \t%rd<2>;
\tmov.b32 \t%r1, %envreg3;
\tmov.u32 \t%r2, %ctaid.x;
\tadd.s32 \t%r3, %r1, %r2;
\ttex.2d.v4.f32.s32 \t{%f1, %f2, %f3, %f4}, [copy_1_param_1, sm_texel, {%r3, %r2}];
\tsuq.channel_order.b32 \t%r4, [copy_1_param_0];
\tld.param.u64 \t%rd1, [copy_1_param_3];
\tst.shared.f32 \t[%rd1], %f1;
\tmov.b32 \t%r5, %f1;
\tsust.p.2d.v4.b32.trap \t[copy_1_param_0, {%r3, %r2}], {%r5, %r5, %r5, %r4};
\tret;
}
"""


def test_what_differs_is_rewritten():
    text = for_cuda(OPENCL.encode() + b"\0\0").decode()
    assert text.endswith("}\n\0")
    for word in ("envreg", "texref", "surfref", "samplerref", "sm_texel", "texmode", "suq"):
        assert word not in text
    for line in (
        ".target sm_75\n",
        ".visible .entry copy_1(",
        "\t.param .u64 copy_1_param_0,\n\t.param .u64 copy_1_param_1,\n\t.param .u64 .ptr .global",
        "mov.b32 \t%r1, 0;",
        "ld.param.u64 handle, [copy_1_param_1]; tex.2d.v4.f32.s32 \t{%f1, %f2, %f3, %f4}, [handle, {%r3, %r2}];",
        "mov.b32 %r4, 0x10B5;",
        ".extern .shared .align 16 .b8 sm_dynamic[];",
        "mov.u64 \t%rd1, sm_dynamic;",
        "ld.param.u64 handle, [copy_1_param_0]; sust.p.2d.v4.b32.trap \t[handle, {%r3, %r2}], {%r5, %r5, %r5, %r4};",
    ):
        assert line in text


def test_what_opencl_must_not_see_is_shown():
    """Instructions of one architecture alone: behind a trap until the driver of CUDA loads them."""
    hidden = OPENCL.replace("sm_75", "sm_90").replace("\tret;", f"\t{ONLY_HIDDEN} wgmma.fence.sync.aligned;\n\tret;")
    text = for_cuda(hidden.encode()).decode()
    assert ".target sm_90a\n" in text and "trap;" not in text.replace(".trap", "")
    assert "\n\t wgmma.fence.sync.aligned;\n" in text and "//@" not in text
    assert ".extern .shared .align 1024 .b8 sm_dynamic[];" in text


@pytest.mark.skipif(shutil.which("ptxas") is None, reason="no ptxas (of NVIDIA's CUDA toolkit) here")
def test_an_assembler_takes_it(tmp_path):
    file = tmp_path / "k.ptx"
    file.write_bytes(for_cuda(OPENCL.encode())[:-1])
    done = subprocess.run(["ptxas", "-arch=sm_75", file, "-o", tmp_path / "k.cubin"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_parameters_are_counted():
    text = for_cuda(OPENCL.encode())
    assert count_parameters(text, "copy_1") == 4
    assert count_parameters(text, "copy") == -1


def test_what_only_opencl_knows_is_refused():
    with pytest.raises(ValueError, match="reads %envreg9"):
        for_cuda(OPENCL.replace("%envreg3", "%envreg9").encode())


def test_other_binaries_are_refused():
    assert is_ptx(OPENCL.encode())
    with pytest.raises(ValueError, match="no PTX"):
        for_cuda(b"\x7fELF")
