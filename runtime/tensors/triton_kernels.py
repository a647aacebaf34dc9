"""The arithmetic of a forecast in one pass over memory, on CUDA. `kernels` has the plain versions and the formulas.

A kernel takes up to `_MOST` terms; longer sums continue from the sum so far. Tensors are read as flat arrays of n
values, of which the channel is the place modulo D. Sums are float32.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST = 8
BLOCK = 2048

_Terms = Sequence[tuple[float | Tensor, Tensor]]


@triton.jit
def _term(feature, row, weight, places, inside, channels, has_row: tl.constexpr):
    value = tl.load(feature + places, inside, other=0.0).to(tl.float32)
    if has_row:
        weight = tl.load(row + places % channels, inside, other=0.0).to(tl.float32)
    return weight * value


@triton.jit
def _sum_of_terms(
    places, inside, channels,
    f0, f1, f2, f3, f4, f5, f6, f7, r0, r1, r2, r3, r4, r5, r6, r7, w0, w1, w2, w3, w4, w5, w6, w7,
    TERMS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    total = _term(f0, r0, w0, places, inside, channels, ROWS & 1)
    if TERMS > 1:
        total += _term(f1, r1, w1, places, inside, channels, ROWS & 2)
    if TERMS > 2:
        total += _term(f2, r2, w2, places, inside, channels, ROWS & 4)
    if TERMS > 3:
        total += _term(f3, r3, w3, places, inside, channels, ROWS & 8)
    if TERMS > 4:
        total += _term(f4, r4, w4, places, inside, channels, ROWS & 16)
    if TERMS > 5:
        total += _term(f5, r5, w5, places, inside, channels, ROWS & 32)
    if TERMS > 6:
        total += _term(f6, r6, w6, places, inside, channels, ROWS & 64)
    if TERMS > 7:
        total += _term(f7, r7, w7, places, inside, channels, ROWS & 128)
    return total


@triton.jit
def _sum_kernel(
    out, base, offset, n, channels,
    f0, f1, f2, f3, f4, f5, f6, f7, r0, r1, r2, r3, r4, r5, r6, r7, w0, w1, w2, w3, w4, w5, w6, w7,
    TERMS: tl.constexpr, ROWS: tl.constexpr, HAS_BASE: tl.constexpr, HAS_OFFSET: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    places = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = places < n
    total = _sum_of_terms(
        places, inside, channels,
        f0, f1, f2, f3, f4, f5, f6, f7, r0, r1, r2, r3, r4, r5, r6, r7, w0, w1, w2, w3, w4, w5, w6, w7,
        TERMS, ROWS,
    )  # fmt: skip
    if HAS_BASE:
        total += tl.load(base + places, inside, other=0.0).to(tl.float32)
    if HAS_OFFSET:
        total += tl.load(offset + places % channels, inside, other=0.0).to(tl.float32)
    tl.store(out + places, total.to(out.dtype.element_ty), inside)


@triton.jit
def _lengths_kernel(
    out, now, before, n, channels,
    f0, f1, f2, f3, f4, f5, f6, f7, r0, r1, r2, r3, r4, r5, r6, r7, w0, w1, w2, w3, w4, w5, w6, w7,
    TERMS: tl.constexpr, ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Partial sums of squares [samples, blocks, 2] of the step and of the input's move; n: values of a sample."""
    sample, block, blocks = tl.program_id(1), tl.program_id(0), tl.num_programs(0)
    within = block.to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = within < n
    places = sample.to(tl.int64) * n + within
    step = _sum_of_terms(
        places, inside, channels,
        f0, f1, f2, f3, f4, f5, f6, f7, r0, r1, r2, r3, r4, r5, r6, r7, w0, w1, w2, w3, w4, w5, w6, w7,
        TERMS, ROWS,
    )  # fmt: skip
    moved = tl.load(now + places, inside, other=0.0).to(tl.float32)
    moved -= tl.load(before + places, inside, other=0.0).to(tl.float32)
    place = out + (sample * blocks + block) * 2
    tl.store(place, tl.sum(step * step))
    tl.store(place + 1, tl.sum(moved * moved))


@triton.jit
def _step_kernel(
    out, base, offset, newest, squares, scales, scale, n, channels,
    f0, f1, f2, f3, f4, f5, f6, f7, r0, r1, r2, r3, r4, r5, r6, r7, w0, w1, w2, w3, w4, w5, w6, w7,
    TERMS: tl.constexpr, ROWS: tl.constexpr, HAS_BASE: tl.constexpr, HAS_OFFSET: tl.constexpr,
    HAS_SCALES: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1)
    within = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = within < n
    places = sample.to(tl.int64) * n + within
    if HAS_SCALES:
        scale = tl.load(scales + sample).to(tl.float32)
    length = tl.sqrt(tl.load(squares + sample * 2))
    moved = tl.sqrt(tl.load(squares + sample * 2 + 1))
    factor = tl.where(moved > 0.0, moved * scale / tl.maximum(length, 1e-12), 1.0)
    total = factor * _sum_of_terms(
        places, inside, channels,
        f0, f1, f2, f3, f4, f5, f6, f7, r0, r1, r2, r3, r4, r5, r6, r7, w0, w1, w2, w3, w4, w5, w6, w7,
        TERMS, ROWS,
    )  # fmt: skip
    total += tl.load(newest + places, inside, other=0.0).to(tl.float32)
    if HAS_BASE:
        total += tl.load(base + places, inside, other=0.0).to(tl.float32)
    if HAS_OFFSET:
        total += tl.load(offset + places % channels, inside, other=0.0).to(tl.float32)
    tl.store(out + places, total.to(out.dtype.element_ty), inside)


def fused_weighted_sum(
    terms: _Terms, base: Tensor | None, offset: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """base + sum_j w_j F_j + offset in `dtype`: one launch for every `_MOST` terms."""
    *earlier, last = _chunks(terms)
    with torch.cuda.device_of(terms[0][1]):
        for chunk in earlier:
            base = _sum(chunk, base, None, torch.float32)
        return _sum(last, base, offset, dtype)


def fused_relational_step(
    terms: _Terms,
    newest: Tensor,
    moved: tuple[Tensor, Tensor],
    scale: Tensor | float,
    base: Tensor | None,
    offset: Tensor | None,
) -> Tensor:
    """RFE's forecast in three launches: lengths of step and move, their sums, the rescaled step."""
    (weight, first), *rest = _dense(terms)
    folded = [(weight - 1.0, first), *rest] if terms[0][1] is newest else [*_dense(terms), (-1.0, newest)]
    newest, now, before = (tensor.contiguous() for tensor in (newest, *moved))
    samples, n = len(newest), newest[0].numel()
    blocks = triton.cdiv(n, BLOCK)
    partial = torch.empty(samples, blocks, 2, dtype=torch.float32, device=newest.device)
    arguments, options = _arguments(folded), _options(folded)
    channels = newest.shape[-1]
    out = torch.empty_like(newest)
    with torch.cuda.device_of(newest):
        _lengths_kernel[(blocks, samples)](partial, now, before, n, channels, *arguments, **options)
        squares = partial.sum(1)
        scales, number = (scale, 0.0) if isinstance(scale, Tensor) else (squares, scale)
        _step_kernel[(blocks, samples)](
        out, _or(base, out), _or(offset, out), newest, squares, scales, number, n, channels, *arguments, **options,
        HAS_BASE=base is not None, HAS_OFFSET=offset is not None, HAS_SCALES=isinstance(scale, Tensor),
    )  # fmt: skip
    return out


def _sum(terms: _Terms, base: Tensor | None, offset: Tensor | None, dtype: torch.dtype) -> Tensor:
    terms = _dense(terms)
    first = terms[0][1]
    out = torch.empty_like(first, dtype=dtype)
    n = first.numel()
    _sum_kernel[(triton.cdiv(n, BLOCK),)](
        out, _or(base, out), _or(offset, out), n, first.shape[-1], *_arguments(terms), **_options(terms),
        HAS_BASE=base is not None, HAS_OFFSET=offset is not None,
    )  # fmt: skip
    return out


def _chunks(terms: _Terms) -> Iterator[_Terms]:
    return (terms[i : i + _MOST] for i in range(0, len(terms), _MOST))


def _dense(terms: _Terms) -> list[tuple[float | Tensor, Tensor]]:
    return [(weight, tensor.contiguous()) for weight, tensor in terms]


def _arguments(terms: _Terms) -> list[Any]:
    """Features, rows and weights, filled up to `_MOST` with ones that are not read."""
    first = terms[0][1]
    features = [tensor for _, tensor in terms] + [first] * (_MOST - len(terms))
    rows = [w if isinstance(w, Tensor) else first for w, _ in terms] + [first] * (_MOST - len(terms))
    weights = [0.0 if isinstance(w, Tensor) else float(w) for w, _ in terms] + [0.0] * (_MOST - len(terms))
    return [*features, *rows, *weights]


def _options(terms: _Terms) -> dict[str, Any]:
    rows = sum(1 << place for place, (weight, _) in enumerate(terms) if isinstance(weight, Tensor))
    return {"TERMS": len(terms), "ROWS": rows, "SIZE": BLOCK}


def _or(tensor: Tensor | None, unread: Tensor) -> Tensor:
    return unread if tensor is None else tensor.contiguous()
