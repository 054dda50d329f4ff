"""What a program's text says of the memory it moves, on one written by hand."""

import pytest

from masksearch_jax.planning import measure
from masksearch_jax.planning.hlo import Module

# A step of 4 rows: reads one of 8 layers [16, 128] of a stack, updates one time of a cache in
# place, keeps what it can in fast memory (S(1)), and ends in a branch that reads a table.
PROGRAM = """
HloModule jit_step

%fused_slice (p.0: bf16[8,16,128], p.1: s32[]) -> bf16[4,128] {
  %p.0 = bf16[8,16,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %view = bf16[8,16,128]{2,1,0:T(8,128)(2,1)} bitcast(%p.0)
  %slice = bf16[1,16,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%view, %p.1), sizes={1,16,128}
  ROOT %out = bf16[4,128]{1,0:T(8,128)(2,1)S(1)} convert(%slice)
}

%fused_update (p.0: bf16[64,128], p.1: bf16[8,128]) -> bf16[64,128] {
  %p.0 = bf16[64,128]{1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  ROOT %update = bf16[64,128]{1,0:T(8,128)(2,1)} dynamic-update-slice(%p.0, %p.1)
}

%idle (x: f32[4,128]) -> f32[4,128] {
  ROOT %x = f32[4,128]{1,0:T(8,128)S(1)} parameter(0)
}

%head (x: f32[4,128]) -> f32[4,128] {
  %x = f32[4,128]{1,0:T(8,128)S(1)} parameter(0)
  %table = f32[1000,128]{1,0:T(8,128)} copy-done(%x)
  ROOT %logits = f32[4,128]{1,0:T(8,128)S(1)} dot(%x, %table), lhs_contracting_dims={1}
}

%body (c: (bf16[8,16,128], bf16[64,128], s32[])) -> (bf16[8,16,128], bf16[64,128], s32[]) {
  %c = (bf16[8,16,128]{2,1,0}, bf16[64,128]{1,0}, s32[]) parameter(0)
  %stack = bf16[8,16,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%c), index=0
  %cache = bf16[64,128]{1,0:T(8,128)(2,1)} get-tuple-element(%c), index=1
  %i = s32[]{:T(128)S(6)} get-tuple-element(%c), index=2
  %x = bf16[4,128]{1,0:T(8,128)(2,1)S(1)} fusion(%stack, %i), kind=kLoop, calls=%fused_slice
  %sum = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) all-reduce-start(%x), channel_id=1
  %done = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} all-reduce-done(%sum)
  %new = bf16[64,128]{1,0:T(8,128)(2,1)} fusion(%cache, %done), kind=kLoop, calls=%fused_update
  %y = f32[4,128]{1,0:T(8,128)S(1)} conditional(%i, %x, %x), branch_computations={%idle, %head}
  ROOT %t = (bf16[8,16,128]{2,1,0}, bf16[64,128]{1,0}, s32[]) tuple(%stack, %new, %i)
}

%until (c: (bf16[8,16,128], bf16[64,128], s32[])) -> pred[] {
  %c = (bf16[8,16,128]{2,1,0}, bf16[64,128]{1,0}, s32[]) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%c), index=2
  %layers = s32[]{:T(128)} constant(28)
  ROOT %lt = pred[]{:T(512)} compare(%i, %layers), direction=LT
}

ENTRY %main (a: bf16[8,16,128]) -> bf16[8,16,128] {
  %a = (bf16[8,16,128]{2,1,0}, bf16[64,128]{1,0}, s32[]) parameter(0)
  %padded = f32[3,6,128]{2,1,0:T(8,128)} copy(%a)
  %loop = (bf16[8,16,128]{2,1,0}, bf16[64,128]{1,0}, s32[]) while(%a), condition=%until, body=%body
  ROOT %z = bf16[8,16,128]{2,1,0} get-tuple-element(%loop), index=0
}
"""


def test_a_loop_reads_slices_and_updates_in_place():
    module = Module(PROGRAM)
    assert module.loop_bodies("conditional") == ["body"]
    layer, row = 16 * 128 * 2, 8 * 128 * 2
    assert module.hbm_bytes("body") == layer + row
    assert module.branch_bytes("body") == 1000 * 128 * 4
    assert module.loop_bodies("fusion") == ["body"]
    assert module.loop_bodies("dot") == []


def test_a_tile_pads_what_it_holds():
    module = Module(PROGRAM)
    (padded,) = module.computations["main"]["padded"].arrays()
    assert padded == (3 * 8 * 128 * 4, True)


def test_a_loop_that_counts_to_a_constant_runs_so_often():
    module = Module(PROGRAM)
    assert module.runs() == {"main": 1, "body": 28, "idle": 28, "head": 28}
    (found,) = module.collectives()
    assert found[:4] == ("all-reduce", 8 * 128 * 2, (8, 128), 28)
    copied = 3 * 8 * 128 * 4 + 8 * 16 * 128 * 2 + 64 * 128 * 2 + 4
    step = 16 * 128 * 2 + 8 * 128 * 2 + 1000 * 128 * 4
    assert module.traffic() == copied + 28 * step


def test_collectives_within_fusions_and_of_several_arrays_are_counted():
    text = """
%sum_and_slice (a: bf16[64,128], b: bf16[64,128]) -> bf16[8,128] {
  %a = bf16[64,128]{1,0} parameter(0)
  %b = bf16[64,128]{1,0} parameter(1)
  %both = (bf16[64,128]{1,0}, bf16[64,128]{1,0}) all-reduce(%a, %b), channel_id=1, to_apply=%add
  %one = bf16[64,128]{1,0} get-tuple-element(%both), index=0
  ROOT %part = bf16[8,128]{1,0} dynamic-slice(%one, %place)
}

ENTRY %main (x: bf16[64,128], y: f32[16,8]) -> bf16[8,128] {
  %x = bf16[64,128]{1,0} parameter(0)
  %y = f32[16,8]{1,0} parameter(1)
  %two = (bf16[64,128]{1,0}, f32[16,8]{1,0}) all-reduce(%x, %y), channel_id=2, to_apply=%add
  %scattered = bf16[8,128]{1,0} reduce-scatter(%x), channel_id=3, to_apply=%add
  %gathered = (bf16[8,128]{1,0}, bf16[64,128]{1,0}) all-gather-start(%scattered), channel_id=4
  ROOT %z = bf16[8,128]{1,0} fusion(%x, %x), kind=kCustom, calls=%sum_and_slice
}
"""
    whole = 64 * 128 * 2
    assert [c[:3] for c in Module(text).collectives()] == [
        ("all-reduce", whole + 16 * 8 * 4, (64, 128)),
        ("reduce-scatter", whole, (8, 128)),
        ("all-gather", whole, (64, 128)),
        ("reduce-scatter", 2 * whole, (64, 128)),
    ]


def test_slices_and_updates_count_where_other_arrays_go_with_them():
    text = """
%fused_both (p.0: bf16[8,64,128], p.1: bf16[64,128], p.2: s32[]) -> (bf16[8,64,128], f32[64,128]) {
  %p.0 = bf16[8,64,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %p.1 = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %p.2 = s32[]{:T(128)} parameter(2)
  %row = bf16[1,64,128]{2,1,0:T(8,128)(2,1)} bitcast(%p.1)
  %kept = bf16[8,64,128]{2,1,0:T(8,128)(2,1)} dynamic-update-slice(%p.0, %row, %p.2)
  %wide = f32[64,128]{1,0:T(8,128)} convert(%p.1)
  ROOT %both = (bf16[8,64,128]{2,1,0:T(8,128)(2,1)}, f32[64,128]{1,0:T(8,128)}) tuple(%kept, %wide)
}

ENTRY %main (stack: bf16[8,64,128], x: bf16[64,128], i: s32[]) -> f32[64,128] {
  %stack = bf16[8,64,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %x = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %i = s32[]{:T(128)S(6)} parameter(2)
  %ahead = ((bf16[8,64,128]{2,1,0:T(8,128)(2,1)}), bf16[1,64,128]{2,1,0:T(8,128)(2,1)S(1)}, \
s32[]{:S(2)}) slice-start(%stack), slice={[0:1], [0:64], [0:128]}
  %there = bf16[1,64,128]{2,1,0:T(8,128)(2,1)S(1)} slice-done(%ahead)
  %f = (bf16[8,64,128]{2,1,0:T(8,128)(2,1)}, f32[64,128]{1,0:T(8,128)}) fusion(%stack, %x, %i), \
kind=kLoop, calls=%fused_both
  ROOT %z = f32[64,128]{1,0:T(8,128)} get-tuple-element(%f), index=1
}
"""
    row = 64 * 128 * 2
    assert Module(text).traffic() == row + row + 2 * row  # read ahead, kept, and widened


def test_sums_between_slices_go_through_the_host():
    told = '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_transfer_type='
    text = f"""
ENTRY %main (x: f32[64,8,128]) -> f32[64,8,128] {{
  %x = f32[64,8,128]{{2,1,0:T(8,128)}} parameter(0)
  %t = token[] after-all()
  %send.1 = (f32[64,8,128]{{2,1,0:T(8,128)}}, u32[], token[]) send(%x, %t), channel_id=2, \
is_host_transfer=true, frontend_attributes={{{told}"ALL_REDUCE"}}
  %recv.1 = (f32[64,8,128]{{2,1,0:T(8,128)}}, u32[], token[]) recv(%t), channel_id=1, \
is_host_transfer=true, frontend_attributes={{{told}"ALL_REDUCE"}}
  %log = (f32[8,128]{{1,0:T(8,128)}}, u32[], token[]) send(%x, %t), channel_id=3
  ROOT %z = f32[64,8,128]{{2,1,0:T(8,128)}} get-tuple-element(%recv.1), index=0
}}
"""
    size = 64 * 8 * 128 * 4
    assert Module(text).collectives() == [("all-reduce", size, (64, 8, 128), 1.0, ())]
    assert measure.wires(Module(text).collectives(), [0, 0, 1, 1]) == {
        "all-reduce": {"count": 1, "ici": 0.0, "dcn": size}  # half there, half of the sum back
    }


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("{{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("[2,4]<=[8]", ((0, 1, 2, 3), (4, 5, 6, 7))),
        ("[4,2]<=[2,2,2]T(2,1,0)", ((0, 4), (2, 6), (1, 5), (3, 7))),
        ("mesh['a'=2,'b'=1,'c'=2] {'a','b'}", ((0, 2), (1, 3))),
        ("mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", ((0, 1), (2, 3))),
    ],
)
def test_groups_of_devices_in_each_notation(text, groups):
    start = "%sum = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, u32[]{:S(2)}) all-reduce-start(%x), "
    text = PROGRAM.replace(start, f"{start}replica_groups={text}, ")
    (found,) = Module(text).collectives()
    assert found.groups == groups
