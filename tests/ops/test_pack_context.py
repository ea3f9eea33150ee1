# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from targets import DTYPES, Target, dtypes, targets
from tolerance import judge

from tdc_kernels import native, pack_context, plan_context, registry
from tdc_kernels.ops.pack_context import dense_rows

needs_library = pytest.mark.skipif(
    native.CPU.why_not() is not None, reason=str(native.CPU.why_not())
)


def make_plan(static=True, max_tokens=None, trim="frames"):
    boundaries = torch.tensor([[2, 5], [4, 4], [1, 3]])
    lengths = 4 if static else None
    return plan_context(boundaries, [0, 7, 11, 11 + 4], 3, lengths, 2, max_tokens, trim=trim)


def pieces(plan, width=6, dtype=torch.float64):
    return (
        torch.randn(int(plan.cu_static[-1]), width).to(dtype),
        (5 * torch.randn(len(plan.dynamic), plan.num_queries, width)).to(dtype),
        torch.randn(width).to(dtype),
    )


def gather(static, compressed, separator, plan):
    """Token by token, with torch's own normalisation in the inputs' dtype."""
    compressed = F.normalize(compressed, dim=-1).flatten(0, 1)
    rows = [*static, *compressed, separator]
    tokens = [rows[i] for i in plan.source.tolist()]
    return torch.stack(tokens) if tokens else separator.new_zeros(0, len(separator))


def exact(parts, plan, grad):
    """Output and gradients written out in extended precision: fp64 is judged as well."""
    static, compressed, separator = (x.double().numpy().astype(np.longdouble) for x in parts)
    x = compressed.reshape(-1, len(separator))
    length = np.sqrt((x * x).sum(1, keepdims=True))
    norm = np.maximum(length, 1e-12)
    source = plan.source.numpy()
    packed = np.concatenate([static, x / norm, separator[None]])[source]
    g = np.zeros((len(static) + len(x) + 1, len(separator)), np.longdouble)
    np.add.at(g, source, grad.double().numpy())
    g, to_static, to_separator = g[len(static) : -1], g[: len(static)], g[-1]
    along = np.where(length < 1e-12, 0, (g * x).sum(1, keepdims=True) / norm**2)
    to_compressed = ((g - along * x) / norm).reshape(compressed.shape)
    found = packed, to_static, to_compressed, to_separator
    return [torch.from_numpy(x.astype(np.float64)) for x in found]


def both(function, parts, grad):
    """Output and gradients, on the CPU; ``grad`` is the output's."""
    parts = [x.detach().requires_grad_() for x in parts]
    out = function(*parts)
    found = torch.autograd.grad(out, parts, grad.to(out), allow_unused=True, materialize_grads=True)
    return [x.detach().cpu() for x in (out, *found)]


def on(target, plan):
    """pack_context on a target, without the prefix sums."""
    plan = plan.to(target.device)
    return lambda *parts: pack_context(
        *(x.to(target.device) for x in parts), plan, backend=target.backend
    )[0]


def check(target, plan, parts):
    """Output and gradients against the formula; returns ours."""
    grad = torch.randn(plan.total_tokens, parts[0].shape[1]).to(parts[0].dtype)
    got = both(on(target, plan), parts, grad)
    assert [x.dtype for x in got] == [parts[0].dtype] * 4
    plain = both(lambda *p: gather(*p, plan), parts, grad)
    for trio in zip(got, plain, exact(parts, plan, grad), strict=True):
        judge(*trio)
    return got


@targets("pack_context")
@dtypes
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("max_tokens", [None, 9])
def test_formula(target, dtype, static, max_tokens):
    plan = make_plan(static, max_tokens)
    check(target, plan, pieces(plan, 48, dtype))


@targets("pack_context")
@pytest.mark.parametrize("static", [True, False])
def test_rows_cut_off_have_no_gradient(target, static):
    plan = make_plan(static, 9, "window_tail")
    _, to_static, to_compressed, _ = check(target, plan, pieces(plan, 8, torch.float32))
    cut = torch.cat([to_static, to_compressed.flatten(0, 1)])[plan.position < 0]
    assert len(cut) > 0
    assert torch.equal(cut, torch.zeros_like(cut))


@targets("pack_context")
@pytest.mark.parametrize("width", [2, 5, 4201, 4224])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_any_width(target, width, dtype):
    """Rows longer than what a block keeps, too, 16 bytes at a time and one by one."""
    plan = plan_context(torch.tensor([[2]]), [0, 3], None, 2, 1)
    check(target, plan, pieces(plan, width, dtype))


@targets("pack_context")
def test_one_channel(target):
    plan = make_plan()  # the judge would want gradients of exactly 0
    parts, grad = pieces(plan, 1, torch.float32), torch.randn(plan.total_tokens, 1)
    wanted = [x.float() for x in exact(parts, plan, grad)]
    torch.testing.assert_close(both(on(target, plan), parts, grad), wanted)


@targets("pack_context")
def test_all_frames_static(target):
    plan = plan_context(torch.tensor([[1, 2]]), [0, 3], None, 2, 4)
    assert len(plan.dynamic) == 0
    check(target, plan, pieces(plan, 8, torch.float32))


@targets("pack_context")
def test_layout_by_hand(target):
    """One video of five frames, two scenes, two-token static frames and one-token queries."""
    plan = plan_context(torch.tensor([[3]]), [0, 5], None, 2, 1)
    static = torch.tensor([[1.0, 0], [2, 0], [3, 0], [4, 0]], device=target.device)
    compressed = torch.tensor([[[0.0, 5]], [[0, -6]], [[7, 0]]], device=target.device)
    separator = torch.tensor([9.0, 9], device=target.device)
    # The plan is still on the host: moved by the call.
    packed, cu_context = pack_context(static, compressed, separator, plan, backend=target.backend)
    sep = [9.0, 9]
    first = [[1.0, 0], [2, 0], sep, [0, 1], sep, [0, -1], sep]
    assert packed.tolist() == [*first, [3, 0], [4, 0], sep, [1, 0], sep]
    assert cu_context.tolist() == [0, 12]
    assert cu_context.device == packed.device


@targets("pack_context")
def test_zero_norm_and_bad_rows(target):
    plan = make_plan()
    static, compressed, separator = pieces(plan, dtype=torch.float32)
    compressed[0, 0] = 0
    compressed[1, 1, 2] = math.nan
    packed = on(target, plan)(static, compressed, separator).cpu()
    first = len(static)
    bad = plan.source == first + 3
    assert not packed[plan.source == first].any()
    assert torch.equal(packed.isnan().any(1), bad)
    assert packed[bad].isnan().all()


@targets("pack_context")
def test_gradient_below_the_smallest_norm(target):
    """There the norm is a constant; row by row, as the gradients differ by orders of magnitude."""
    plan = make_plan()
    parts = pieces(plan, 16, torch.float32)
    compressed = parts[1].flatten(0, 1)
    compressed[0] = 0
    compressed[1] *= 1e-13 / compressed[1].norm()
    compressed[2] *= 1e-11 / compressed[2].norm()
    grad = torch.randn(plan.total_tokens, 16)
    got = both(on(target, plan), parts, grad)[2].flatten(0, 1)
    wanted = exact(parts, plan, grad)[2].flatten(0, 1).float()
    for ours, row in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, row, rtol=1e-4, atol=1e-5 * row.abs().max().item())
    torch.testing.assert_close(got[0], 1e12 * grad[plan.position[len(parts[0])]])


@targets("pack_context")
def test_gradient_of_bad_rows_stays_local(target):
    plan = make_plan()
    parts = [x.to(target.device) for x in pieces(plan, dtype=torch.float32)]
    parts[1][1, 1, 2] = math.nan
    parts[1][2, 0, 0] = math.inf
    grad = torch.ones(plan.total_tokens, 6)
    reference = Target(target.device, "reference")
    results = [both(on(t, plan), parts, grad) for t in (target, reference)]
    for ours, wanted in zip(*results, strict=True):
        assert torch.equal(ours.isnan(), wanted.isnan())


@targets("pack_context")
def test_same_bits_every_time(target, monkeypatch):
    if target.backend == "reference":
        pytest.skip("autograd adds up separators as it likes")
    plan = make_plan()
    parts = pieces(plan, 600, torch.float32)
    grad = torch.randn(plan.total_tokens, 600)
    threads = torch.get_num_threads()
    results = []
    for number, order in enumerate(("forward", "reverse", "shuffle"), 1):
        torch.set_num_threads(number)
        monkeypatch.setenv("TDC_CUDA_ON_CPU_ORDER", order)  # of blocks and threads
        results.append(both(on(target, plan), parts, grad))
    torch.set_num_threads(threads)
    torch.testing.assert_close(results[1:], [results[0]] * 2, rtol=0, atol=0)


@targets("pack_context")
@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)], ids=str)
def test_only_some_gradients(target, wanted):
    plan = make_plan()
    parts = [x.to(target.device) for x in pieces(plan, 16, torch.float32)]
    _, *full = both(on(target, plan), parts, torch.ones(plan.total_tokens, 16))
    leaves = [x.requires_grad_(i in wanted) for i, x in enumerate(parts)]
    on(target, plan)(*leaves).sum().backward()  # an expanded gradient: its rows are not dense
    for i, (leaf, grad) in enumerate(zip(leaves, full, strict=True)):
        assert (leaf.grad is not None) == (i in wanted)
        if i in wanted:
            torch.testing.assert_close(leaf.grad.cpu(), grad, rtol=0, atol=0)


def test_some_gradients_compile():
    plan = make_plan()
    compiled = torch.compile(
        lambda *p: pack_context(*p, plan)[0], fullgraph=True, dynamic=True, backend="aot_eager"
    )
    static, compressed, separator = pieces(plan)
    compressed.requires_grad_()
    grad = torch.randn(plan.total_tokens, 6, dtype=torch.float64)
    (got,) = torch.autograd.grad(compiled(static, compressed, separator), compressed, grad)
    parts = static, compressed.detach(), separator
    torch.testing.assert_close(got, exact(parts, plan, grad)[2])


@targets("pack_context")
@pytest.mark.parametrize("half", DTYPES[:2], ids=str)
def test_mixed_dtypes_are_promoted(target, half):
    plan = make_plan()
    static, compressed, separator = pieces(plan)
    parts = static.to(half), compressed.float(), separator.to(half)
    grad = torch.randn(plan.total_tokens, 6)
    got = both(on(target, plan), parts, grad)
    assert [x.dtype for x in got] == [torch.float32, half, torch.float32, half]
    same = both(on(target, plan), [x.float() for x in parts], grad)
    for ours, wanted in zip(got, same, strict=True):
        torch.testing.assert_close(ours, wanted.to(ours), rtol=0, atol=0)


@targets("pack_context")
def test_fp16_norms_do_not_overflow(target):
    plan = make_plan()
    static, compressed, separator = pieces(plan, 512, torch.float16)
    compressed = torch.full_like(compressed, 8000)  # a norm of 181019, fp16 ends at 65504
    packed = on(target, plan)(static, compressed, separator).cpu()
    rows = packed[plan.kinds == 1].double()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(rows)).double(), rtol=1e-3, atol=0)


@targets("pack_context")
def test_nothing_to_pack(target):
    plan = plan_context(torch.zeros(1, 3).int(), [0, 0], None, 5, 2)
    parts = torch.zeros(0, 4), torch.zeros(0, 2, 4), torch.ones(4)
    packed, *_, to_separator = both(on(target, plan), parts, torch.zeros(0, 4))
    assert packed.shape == (0, 4)
    assert to_separator.tolist() == [0] * 4


@targets("pack_context")
def test_strides(target):
    plan = make_plan()
    given = [*pieces(plan), torch.randn(plan.total_tokens, 6).double()]
    wanted = both(on(target, plan), given[:3], given[3])
    static = torch.stack([given[0], given[0]], 1)[:, 0]
    compressed = given[1].transpose(0, 1).contiguous().transpose(0, 1)
    assert dense_rows(static) is static  # read where they are
    assert dense_rows(compressed) is compressed
    columns = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in given]
    cases = [[static, compressed, *given[2:]], columns]
    for i, x in enumerate(given):  # one at a time is not aligned for 16 bytes
        shifted = torch.cat([x.flatten()[:1], x.flatten()])[1:].view_as(x)
        cases.append([*given[:i], shifted, *given[i + 1 :]])
    for *parts, grad in cases:
        torch.testing.assert_close(both(on(target, plan), parts, grad), wanted)


@needs_library
@pytest.mark.parametrize("name", native.INSTRUCTION_SETS)
@dtypes
def test_instruction_sets(name, dtype):
    plan = make_plan(max_tokens=9, trim="window_tail")
    try:
        native.use_instruction_set(name)
    except ValueError as error:
        pytest.skip(str(error))
    try:
        for width in (7, 48, 601):
            check(Target("cpu", "native"), plan, pieces(plan, width, dtype))
    finally:
        native.use_instruction_set(None)


@needs_library
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"static": torch.ones(32, 6)}, "compressed: unexpected dtype"),
        ({"static": torch.ones(32).double()}, "static: expected two dimensions"),
        ({"compressed": torch.ones(7, 2, 5).double()}, "compressed: expected .M, K, D."),
        ({"separator": torch.ones(5).double()}, "separator: expected .D."),
        ({"source": torch.tensor([0, 47]).int()}, "source: expected numbers from 0 to 46, .* 47"),
        ({"source": torch.tensor([-1]).int()}, "source: expected numbers .* got -1"),
        ({"source": torch.tensor([0])}, "source: unexpected dtype"),
        ({"grad": torch.ones(61, 5).double()}, "compressed: expected .M, K, D."),
        ({"grad": torch.ones(61, 6)}, "compressed: unexpected dtype"),
        ({"position": torch.zeros(13).int()}, "position: expected an entry per row of compressed"),
        ({"position": torch.full((46,), 61).int()}, "position: expected numbers from -1 to 60"),
        ({"separators": torch.tensor([-1]).int()}, "separators: expected numbers from 0 to 60"),
    ],
)
def test_operators_check_what_they_would_read(changed, message):
    """Called past the public function: an error, never memory that is not ours."""
    plan = make_plan()
    static, compressed, separator = pieces(plan)
    args = {"static": static, "compressed": compressed, "separator": separator}
    args |= {"source": plan.source, "position": plan.position, "separators": plan.separators}
    args |= {"grad": torch.ones(61, 6).double()} | changed
    entry, grad = registry.entry("pack_context", "native"), args.pop("grad")
    with pytest.raises(RuntimeError, match=message):
        entry.handle(**args)
        way_back = args["compressed"], args["position"], args["separators"]
        entry.backward(grad, *way_back, True, True, True)


@targets("pack_context")
def test_gpu_kernels_read_nothing_that_is_not_there(target):
    """They cannot raise: an impossible row is a separator, an impossible token is cut off."""
    if target.backend not in ("cuda", "triton"):
        pytest.skip("raises")
    wild = torch.tensor([-(2**31), -1, 47, 2**31 - 1], dtype=torch.int32).to(target.device)
    parts = [x.to(target.device) for x in pieces(make_plan())]
    entry = registry.entry("pack_context", target.backend)
    packed = entry.handle(*parts, wild, wild.repeat(12)[:46], wild)
    assert torch.equal(packed, parts[2].expand(4, -1))
    grad = torch.ones_like(packed)
    gradients = entry.backward(grad, parts[1], wild.repeat(12)[:46], wild, True, True, True)
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize("max_tokens", [None, 9])
def test_gradcheck(max_tokens):
    plan = make_plan(max_tokens=max_tokens)
    parts = [x.requires_grad_() for x in pieces(plan, 3)]
    assert torch.autograd.gradcheck(lambda *p: pack_context(*p, plan)[0], parts)


@targets("pack_context")
def test_autocast_changes_nothing(target):
    plan = make_plan()
    parts = pieces(plan, dtype=torch.float32)
    with torch.autocast(target.device, torch.bfloat16):
        got = on(target, plan)(*parts)
    torch.testing.assert_close(got, on(target, plan)(*parts), rtol=0, atol=0)


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_beyond_32_bit_addresses(device):
    plan = plan_context(torch.full((1, 5000), 10_000).int(), [0, 10_000], 2, 156, 16)
    width = 3584
    assert plan.total_tokens * width > 2**31
    shapes = (5000 * 156, width), (5000, 16, width), (width,)
    parts = [torch.ones(shape, device=device, dtype=torch.bfloat16) for shape in shapes]
    parts[2].requires_grad_()
    packed, _ = pack_context(*parts, plan.to(device))
    assert packed.shape == (plan.total_tokens, width)
    if device == "cuda":
        assert packed[-1].eq(1).all() and packed[-2].isclose(parts[2] * width**-0.5).all()
        packed[-100:].sum().backward()
        assert parts[2].grad.eq(int((plan.kinds[-100:] == 2).sum())).all()


@pytest.mark.parametrize(
    ("position", "value", "error", "message"),
    [
        (0, torch.ones(3), ValueError, r"static: expected shape \[Ns, D\]"),
        (0, torch.ones(7, 6), ValueError, r"static: expected size 32 in dimension 0 \(plan.cu_sta"),
        (1, torch.ones(7, 2, 5), ValueError, r"compressed: expected size 6 in dimension 2"),
        (1, torch.ones(8, 2, 6), ValueError, r"expected size 7 in dimension 0 \(plan.dynamic"),
        (1, torch.ones(7, 3, 6), ValueError, r"expected size 2 in dimension 1 \(plan.num_queries"),
        (2, torch.ones(5), ValueError, "separator: expected size 6 in dimension 0"),
        (2, [1.0] * 6, TypeError, "separator: expected a floating tensor"),
        (3, {}, TypeError, "plan: expected a ContextPlan, got dict"),
    ],
)
def test_errors(position, value, error, message):
    plan = make_plan()
    arguments = [*pieces(plan), plan]
    assert [len(x) for x in arguments[:3]] == [32, 7, 6]
    arguments[position] = value
    with pytest.raises(error, match=message):
        pack_context(*arguments)
