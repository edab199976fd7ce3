"""Programs of the GPU's and the TPU's compiler: what is read from their text is what can be worked out by hand."""

import pytest

from selfparam_jax.plan.costs import costs
from selfparam_jax.plan.hlo import Array, arrays, parts, read_program

NOTE = 'backend_config={"window_config":{"estimated_cycles":"1000"}}'
# A loop of five rounds, as the TPU's compiler writes it: the count is in the condition. In each round a gather that
# is spread over three fusions, one that is waited for, and a product as a convolution, its result kept on the chip.
TPU = f"""HloModule jit_step, is_scheduled=true

%start (p: bf16[64,32]) -> (bf16[64,128], u32[]) {{
  %p = bf16[64,32]{{1,0:T(8,128)(2,1)}} parameter(0)
  %g0 = bf16[64,128]{{1,0}} all-gather(%p), channel_id=7, replica_groups={{{{0,1,2,3}}}}, dimensions={{1}}
  ROOT %s = (bf16[64,128]{{1,0}}, u32[]{{:S(2)}}) custom-call(%g0), custom_call_target="AsyncCollectiveStart"
}}

%step (p.1: bf16[64,32], q: bf16[16,64]) -> bf16[16,32] {{
  %p.1 = bf16[64,32]{{1,0}} parameter(0)
  %q = bf16[16,64]{{1,0}} parameter(1)
  %g1 = bf16[64,128]{{1,0}} all-gather(%p.1), channel_id=7, replica_groups={{{{0,1,2,3}}}}, dimensions={{1}}
  ROOT %c = bf16[16,32]{{1,0:T(8,128)(2,1)S(1)}} convolution(%q, %p.1), dim_labels=bf_io->bf
}}

%done (p.2: bf16[64,32]) -> bf16[64,128] {{
  %p.2 = bf16[64,32]{{1,0}} parameter(0)
  %g2 = bf16[64,128]{{1,0}} all-gather(%p.2), channel_id=7, replica_groups={{{{0,1,2,3}}}}, dimensions={{1}}
  ROOT %d = bf16[64,128]{{1,0}} custom-call(%p.2, %g2), custom_call_target="AsyncCollectiveDone"
}}

%cut (p.3: bf16[5,64,32], at: s32[]) -> bf16[64,32] {{
  %p.3 = bf16[5,64,32]{{2,1,0}} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = bf16[1,64,32]{{2,1,0}} dynamic-slice(%p.3, %at, %zero, %zero), dynamic_slice_sizes={{1,64,32}}
  ROOT %flat = bf16[64,32]{{1,0:T(8,128)S(1)}} bitcast(%layer)
}}

%body (c.1: (s32[], bf16[5,64,32], bf16[16,64])) -> (s32[], bf16[5,64,32], bf16[16,64]) {{
  %c.1 = (s32[], bf16[5,64,32]{{2,1,0}}, bf16[16,64]{{1,0:S(1)}}) parameter(0)
  %n = s32[] get-tuple-element(%c.1), index=0
  %stack = bf16[5,64,32]{{2,1,0}} get-tuple-element(%c.1), index=1
  %x = bf16[16,64]{{1,0:S(1)}} get-tuple-element(%c.1), index=2
  %own = bf16[64,32]{{1,0:T(8,128)S(1)}} fusion(%stack, %n), kind=kLoop, calls=%cut, {NOTE}
  %f0 = (bf16[64,128]{{1,0:S(1)}}, u32[]{{:S(2)}}) fusion(%own), kind=kCustom, calls=%start
  %f1 = bf16[16,32]{{1,0:T(8,128)S(1)}} fusion(%own, %x), kind=kOutput, calls=%step, {NOTE}
  %f2 = bf16[64,128]{{1,0:S(1)}} fusion(%own), kind=kCustom, calls=%done
  %waited = f32[8]{{0:S(1)}} all-reduce(%x), channel_id=9, replica_groups={{{{0,1,2,3}}}}, to_apply=%sum
  %kernel = bf16[16,64]{{1,0:S(1)}} custom-call(%x), custom_call_target="tpu_custom_call", frontend_attributes={{
"metadata":"of a kernel, over several lines"
}}, backend_config={{"window_config":{{"estimated_cycles":"9223372036854775807"}}}}
  %last = f32[8]{{0:S(1)}} all-reduce(%x), channel_id=10, replica_groups={{{{0,1,2,3}}}}, to_apply=%sum
  ROOT %t = (s32[], bf16[5,64,32]{{2,1,0}}, bf16[16,64]{{1,0:S(1)}}) tuple(%n, %stack, %kernel)
}}

%condition (c.2: (s32[], bf16[5,64,32], bf16[16,64])) -> pred[] {{
  %bound = s32[]{{:T(128)}} constant(5)
  %c.2 = (s32[], bf16[5,64,32]{{2,1,0}}, bf16[16,64]{{1,0:S(1)}}) parameter(0)
  %m = s32[] get-tuple-element(%c.2), index=0
  ROOT %lt = pred[]{{:T(512)}} compare(%m, %bound), direction=LT
}}

ENTRY %main (a: s32[], b: bf16[5,64,32], x.1: bf16[16,64]) -> bf16[16,64] {{
  %a = s32[] parameter(0)
  %b = bf16[5,64,32]{{2,1,0}} parameter(1)
  %x.1 = bf16[16,64]{{1,0}} parameter(2)
  %begun = (bf16[16,64]{{1,0:S(1)}}, bf16[16,64]{{1,0}}, u32[]{{:S(2)}}) copy-start(%x.1)
  %here = bf16[16,64]{{1,0:S(1)}} copy-done(%begun)
  %i = (s32[], bf16[5,64,32]{{2,1,0}}, bf16[16,64]{{1,0:S(1)}}) tuple(%a, %b, %here)
  %w = (s32[], bf16[5,64,32], bf16[16,64]{{1,0:S(1)}}) while(%i), condition=%condition, body=%body
  ROOT %r = bf16[16,64]{{1,0:S(1)}} get-tuple-element(%w), index=2
}}
"""


def test_a_transfer_that_goes_on_during_a_loop_is_one():
    """Started before the loop, ended after it, and in between a part of a fusion in each of five rounds."""
    start, done = (
        next(line for line in TPU.splitlines() if line.startswith(f"  %{name} = ")) for name in ("f0", "f2")
    )
    text = TPU.replace(start + "\n", "").replace(done + "\n", "")
    loop = next(line for line in text.splitlines() if line.startswith("  %w = "))
    start, done = (line.replace("(%own)", "(%x.1)") for line in (start, done))
    found = costs(text.replace(loop, f"{start}\n{loop}\n{done}")).collectives
    gathers = {each: times for each, times in found.items() if each.kind == "all-gather"}
    ((gather, times),) = gathers.items()
    assert gather.overlaps and times == 1
    assert sum(times for each, times in found.items() if each.kind == "all-reduce") == 10


def test_a_program_of_the_tpus_compiler():
    found = costs(TPU)
    assert found.flops == 5 * 2 * 16 * 32 * 64
    assert found.cycles == 5 * 2000 and found.kernels == 5
    # Of the stack one layer is read a round, into the chip; the rows are read once.
    assert found.bytes == 5 * 2 * 64 * 32 + 2 * 16 * 64
    # A gather that is spread over fusions is one, and is not waited for.
    assert found.sent == {"all-gather": 5 * 0.75 * 2 * 64 * 128, "all-reduce": 5 * 2 * 2 * 0.75 * 4 * 8}
    assert found.exposed == {"all-reduce": 5 * 2 * 2 * 0.75 * 4 * 8}
    (gather,) = [each for each in found.collectives if each.kind == "all-gather"]
    assert gather.largest == 64 * 128 and found.collectives[gather] == 5


CHAIN = """HloModule jit_step, is_scheduled=true

%cut (p: bf16[5,64,32], at: s32[]) -> bf16[64,32] {
  %p = bf16[5,64,32]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %layer = bf16[1,64,32]{2,1,0} dynamic-slice(%p, %at, %zero, %zero), dynamic_slice_sizes={1,64,32}
  ROOT %flat = bf16[64,32]{1,0} bitcast(%layer)
}

%chain (buffer: bf16[64,128], own: bf16[64,32], stack: bf16[5,64,32], n: s32[]) -> (bf16[64,32], bf16[64,128], bf16[64,128]) {
  %buffer = bf16[64,128]{1,0} parameter(0)
  %own = bf16[64,32]{1,0} parameter(1)
  %stack = bf16[5,64,32]{2,1,0} parameter(2)
  %n = s32[] parameter(3)
  %one = bf16[64,32]{1,0} fusion(%stack, %n), kind=kLoop, calls=%cut
  %twice = bf16[64,32]{1,0} add(%one, %one)
  %g = bf16[64,128]{1,0} all-gather(%own), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={1}
  ROOT %t = (bf16[64,32]{1,0}, bf16[64,128]{1,0}, bf16[64,128]{1,0}) tuple(%twice, %buffer, %g)
}

ENTRY %main (b: bf16[64,128], o: bf16[64,32], s: bf16[5,64,32], n.1: s32[]) -> (bf16[64,32], bf16[64,128], bf16[64,128]) {
  %b = bf16[64,128]{1,0} parameter(0)
  %o = bf16[64,32]{1,0} parameter(1)
  %s = bf16[5,64,32]{2,1,0} parameter(2)
  %n.1 = s32[] parameter(3)
  ROOT %f = (bf16[64,32]{1,0}, bf16[64,128]{1,0}, bf16[64,128]{1,0}) fusion(%b, %o, %s, %n.1), kind=kCustom, output_to_operand_aliasing={{1}: (0, {}), {2}: (0, {})}, calls=%chain
}
"""  # noqa: E501


def test_a_buffer_that_a_fusion_hands_on_is_not_moved():
    """It reads a layer of the stack, through a fusion of its own, and writes as much; a transfer fills the buffer."""
    assert costs(CHAIN).bytes == 2 * (2 * 64 * 32)
    copied = CHAIN.replace(" output_to_operand_aliasing={{1}: (0, {}), {2}: (0, {})},", "")
    assert costs(copied).bytes == 2 * (2 * 64 * 32) + 2 * 64 * 32 + 3 * (2 * 64 * 128)


def test_rounds_that_nothing_says():
    text = TPU.replace("constant(5)", "parameter(1)")
    assert costs(text, 3).cycles == 3 * 2000
    told = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"4"}}')
    assert costs(told, 3).cycles == 4 * 2000


GPU = """HloModule jit_step, is_scheduled=true

%double (p: f32[64]) -> f32[64] {
  %p = f32[64]{0} parameter(0)
  ROOT %d = f32[64]{0} add(%p, %p)
}

ENTRY %main (a: bf16[32,16], b: bf16[16,8], c: f32[64]) -> f32[64] {
  %a = bf16[32,16]{1,0} parameter(0)
  %b = bf16[16,8]{1,0} parameter(1)
  %c = f32[64]{0} parameter(2)
  %g = ((bf16[32,16]{1,0}, bf16[16,8]{1,0}), (bf16[128,16]{1,0}, bf16[64,8]{1,0})) all-gather-start(%a, %b), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, backend_config={"collective_backend_config":{"is_sync":false}}
  %f = f32[64]{0} fusion(%c), kind=kLoop, calls=%double
  %h = (bf16[128,16]{1,0}, bf16[64,8]{1,0}) all-gather-done(%g)
  %r = f32[64]{0} all-reduce-start(%f), channel_id=2, replica_groups=[1,8]<=[8], to_apply=%sum
  ROOT %s = f32[64]{0} all-reduce-done(%r)
  %m = (bf16[32,8]{1,0}, s8[1024]{0}) custom-call(%a, %b), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
}
"""  # noqa: E501


def test_a_program_of_the_gpus_compiler():
    found = costs(GPU)
    assert found.sent == {"all-gather": 0.75 * 2 * (128 * 16 + 64 * 8), "all-reduce": 2 * 7 / 8 * 4 * 64}
    assert found.exposed == {"all-reduce": 2 * 7 / 8 * 4 * 64}  # it ends where it starts
    assert costs(GPU.replace('"is_sync":false', '"is_sync":true')).exposed == found.sent
    assert found.flops == 2 * 32 * 8 * 16


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        (
            "bf16[2,256,64]{2,1,0} convolution(%l, %r), window={size=1}, dim_labels=0bf_io0->0bf",
            2 * 2 * 256 * 64 * 32,
        ),
        # Four products side by side, as a strided convolution: one tap of the window falls onto each.
        (
            "bf16[4,256,64] convolution(%b, %k), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf",
            2 * 4 * 256 * 64 * 32,
        ),
    ],
)
def test_products_that_are_written_as_convolutions(line, flops):
    text = (
        "ENTRY %main (l: bf16[2,256,32], r: bf16[32,64,1], b: bf16[4,256,32], k: bf16[4,32,64]) -> bf16[1] {\n"
        "  %l = bf16[2,256,32]{2,1,0} parameter(0)\n  %r = bf16[32,64,1]{2,1,0} parameter(1)\n"
        "  %b = bf16[4,256,32]{2,1,0} parameter(2)\n  %k = bf16[4,32,64]{2,1,0} parameter(3)\n"
        f"  ROOT %c = {line}\n}}\n"
    )
    assert costs(text).flops == flops


def test_shapes():
    assert arrays("(f32[2,3]{1,0:T(2,128)S(1)}, (pred[], bf16[4]{0}))") == [
        Array("f32", (2, 3), on_chip=True), Array("pred", ()), Array("bf16", (4,)),
    ]  # fmt: skip
    assert parts("(a, b), c{1,0}, d") == ["(a, b)", "c{1,0}", "d"]
    with pytest.raises(ValueError, match=r"plan/hlo\.py must learn"):
        read_program("%f (p: f32[]) -> f32[] {\n  %x = f32[] add(%p, %p\n}")
