"""Reports of compiled programs: known bytes and FLOPs; one line for what cannot be."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from bpfree import hardware
from bpfree.hardware import kernels
from bpfree.hardware.config import compile_for
from bpfree.training import ConfigError
from tests.test_training import small, standard_promotion

assert standard_promotion  # a fixture for every test of this module, too

LOOP = """HloModule loop
%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %w = f32[16,16]{1,0} constant({...})
  %y = f32[8,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%i, %y)
}
%cond (p: (s32[], f32[8,16])) -> pred[] {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %n = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}
ENTRY %main (a: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %a = (s32[], f32[8,16]{1,0}) parameter(0)
  ROOT %while = (s32[], f32[8,16]{1,0}) while(%a), condition=%cond, body=%body
}
"""

CONVOLUTION = """HloModule conv
ENTRY %main (x: bf16[2,4,4,3], k: bf16[3,3,3,5]) -> bf16[2,4,4,5] {
  %x = bf16[2,4,4,3]{3,2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %k = bf16[3,3,3,5]{3,2,1,0} parameter(1)
  ROOT %y = bf16[2,4,4,5]{3,2,1,0} convolution(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f
}
"""  # noqa: E501

REDUCE = """HloModule reduce
%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %s = f32[] add(%a, %b)
}
ENTRY %main (x: f32[100], y: bf16[10]) -> (f32[100], bf16[10]) {
  %x = f32[100]{0} parameter(0)
  %y = bf16[10]{0} parameter(1)
  ROOT %r = (f32[100]{0}, bf16[10]{0}) all-reduce(%x, %y), to_apply=%sum
}
"""

GATHER = """HloModule gather
%some (p: f32[1000,64], q: s32[3,1]) -> f32[3,64] {
  %p = f32[1000,64]{1,0} parameter(0)
  %d = f32[1000,64]{1,0} multiply(%p, %p)
  %half = bf16[1000,64]{1,0} convert(%d)
  %q = s32[3,1]{1,0} parameter(1)
  ROOT %g = bf16[3,64]{1,0} gather(%half, %q), offset_dims={1}, slice_sizes={1,64}
}
ENTRY %main (x: f32[1000,64], i: s32[3,1]) -> bf16[3,64] {
  %x = f32[1000,64]{1,0} parameter(0)
  %i = s32[3,1]{1,0} parameter(1)
  ROOT %f = bf16[3,64]{1,0} fusion(%x, %i), kind=kLoop, calls=%some
}
"""


def test_a_fusion_makes_of_a_large_array_what_is_looked_up():
    (some,) = kernels.read(GATHER)
    assert some.bytes == 3 * 64 * 4 + 3 * 4 + 3 * 64 * 2
    (whole,) = kernels.read(GATHER.replace("multiply(%p, %p)", "reverse(%p)"))
    assert whole.bytes == 1000 * 64 * 4 + 3 * 4 + 3 * 64 * 2


def test_a_loop_counts_its_body_so_often():
    (dot,) = kernels.read(LOOP)
    assert dot.times == 5 and dot.flops == 2 * 8 * 16 * 16
    assert dot.bytes == 4 * (8 * 16 + 16 * 16 + 8 * 16)


def test_a_convolution_meets_no_padding_and_no_memory_of_the_chip():
    (conv,) = kernels.read(CONVOLUTION)
    assert conv.flops == 2 * 2 * 3 * 5 * 10 * 10  # 10 of 12 pairs along each axis
    assert conv.bytes == 2 * (3 * 3 * 3 * 5 + 2 * 4 * 4 * 5)
    assert conv.products[0].precision == "bf16"


def test_a_collective_hands_over_its_operands():
    (shared,) = kernels.read(REDUCE)
    assert (shared.collective, shared.sent) == ("all-reduce", 420)


def test_report_of_a_product_on_this_machine():
    x = jax.ShapeDtypeStruct((32, 64), jnp.float32)
    found = hardware.report(lambda a, b: a @ b.T, (x, x), "cpu:1")
    assert found.flops == 2 * 32 * 32 * 64 and found.fits is None and not found.seconds
    assert found.memory["a"] == found.memory["b"] == 32 * 64 * 4
    assert "FLOPs of products    131 k" in str(found)


@pytest.mark.parametrize(
    "target, message",
    [
        ("h10:8", "target 'h10:8' is unknown. Did you mean 'h100:8'?"),
        ("tpu:v5e", "'tpu:v5e' needs a size, such as 'tpu:v5e:4x4'"),
        ("cpu:99", "JAX has 8 CPU devices"),
    ],
)
def test_a_target_that_cannot_be(target, message):
    with pytest.raises(hardware.HardwareError) as error:
        hardware.devices(target)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_compiler_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(hardware.HardwareError, match=r"pip install 'bpfree\[tpu\]'"):
        hardware.devices("tpu:v5e:2x2")


def test_a_mesh_that_does_not_divide():
    with pytest.raises(hardware.HardwareError, match="3 x 2 devices does not divide"):
        hardware.mesh("cpu:8", sample=3, data=2)
    with pytest.raises(ConfigError, match="asks for 16 devices, and there are 8 cpu"):
        compile_for(small(mesh="data:16"), "cpu:8")


def test_what_does_not_fit_says_what_to_change():
    x = jax.ShapeDtypeStruct((8,), jnp.float32)
    made = hardware.report(lambda a: a + 1, (x,), "cpu:1")
    too_much = made._replace(fits=False, memory={"a": 32.0, "scratch": 1e12})
    assert "does not fit: scratch is largest. Lower chunk_size" in str(too_much)


def test_the_step_of_a_config_beside_backprop():
    printed = compile_for(small(mesh="data:2"), "cpu:8")
    assert "backprop" in printed and "2 of 8" in printed and "all-reduce" in printed
