"""Compare the Triton kernels with the plain versions: `TRITON_INTERPRET=1 python -m tests.runtime.tensors.fused`."""

from typing import Any

import torch

from cachesmith.runtime.tensors import kernels, triton_kernels

BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def tensors(count: int, dtype: torch.dtype, shape: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(count)]


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    bound = BOUNDS[expected.dtype]
    torch.testing.assert_close(got, expected, rtol=bound, atol=bound)


def sums(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Every number of terms up to two launches, numbers and rows mixed, with and without base and offset."""
    channels = shape[-1]
    rows = [torch.linspace(-1, 1, channels) * (i + 1) for i in range(11)]
    for count in (1, 2, 3, 5, 8, 9, 11):
        *features, base = tensors(count + 1, dtype, shape)
        weights: list[Any] = [rows[i] if i % 3 == 1 else 0.5 - i for i in range(count)]
        terms = list(zip(weights, features, strict=True))
        for start in (None, base):
            for offset in (None, rows[0]):
                expected = kernels.weighted_sum(terms, start, offset)
                close(triton_kernels.fused_weighted_sum(terms, start, offset, dtype), expected)


def steps(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """With a scale of each sample's own and one number, a sample at rest among the others."""
    *features, now, before, base = tensors(6, dtype, shape)
    now[0] = before[0]
    terms = list(zip((1.5, -0.75, 0.25), features, strict=True))
    for scale in (torch.linspace(0.5, 2, shape[0]), 1.25):
        for start in (None, base):
            arguments: Any = (terms, features[0], (now, before), scale, start, None)
            close(triton_kernels.fused_relational_step(*arguments), kernels.relational_step(*arguments))


if __name__ == "__main__":
    for dtype in BOUNDS:
        for shape in ((2, 5, 6), (3, 70, 33)):
            sums(dtype, shape)
            steps(dtype, shape)
    print("equal")
