"""GGUF's block formats: packed bytes to numbers, equal bit for bit to gguf-py.

Follows the block layouts of ggml (`ggml-common.h`): each function takes (n, bytes of a block) uint8 and gives
(n, values of a block) float32. d: the block's scale, m: its minimum, both float16 in the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SUPER_BLOCK = 256
"""Values of a K-quant block."""


@dataclass(frozen=True)
class Gguf:
    """A GGUF type. parts: blocks (out, bytes of a row) uint8."""

    name: str

    def unpack(self, parts: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        block = BLOCKS[self.name]
        return block.unpack(parts["blocks"].reshape(-1, block.nbytes)).view(shape).to(dtype)


@dataclass(frozen=True)
class Block:
    """values a block, and the bytes they take."""

    values: int
    nbytes: int
    unpack: Callable[[Tensor], Tensor]


def _split(blocks: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """Fields of a block, in order; the last takes what is left."""
    return blocks.split((*sizes, blocks.shape[1] - sum(sizes)), dim=1)


def _half(field: Tensor) -> Tensor:
    """(n, 2 k) bytes of float16 -> (n, k) float32."""
    return field.contiguous().view(torch.float16).float()


def _bits(field: Tensor, width: int) -> Tensor:
    """(n, k) bytes -> (n, 8 / width, k): their parts of `width` bits, the lowest first."""
    shifts = torch.arange(0, 8, width, dtype=torch.uint8, device=field.device).view(1, -1, 1)
    return (field[:, None, :] >> shifts) & (2**width - 1)


def _q8_0(blocks: Tensor) -> Tensor:
    d, values = _split(blocks, 2)
    return _half(d) * values.view(torch.int8).float()


def _q4_0(blocks: Tensor) -> Tensor:
    d, values = _split(blocks, 2)
    return _half(d) * (_bits(values, 4).flatten(1).to(torch.int8) - 8).float()


def _q4_1(blocks: Tensor) -> Tensor:
    d, m, values = _split(blocks, 2, 2)
    return _half(d) * _bits(values, 4).flatten(1).float() + _half(m)


def _fifth_bit(field: Tensor) -> Tensor:
    """(n, 4) bytes -> (n, 32): bit i of the 32 as 16 or 0."""
    return _bits(field, 1).transpose(1, 2).flatten(1) << 4


def _q5_0(blocks: Tensor) -> Tensor:
    d, high, low = _split(blocks, 2, 4)
    values = _bits(low, 4).flatten(1) | _fifth_bit(high)
    return _half(d) * (values.to(torch.int8) - 16).float()


def _q5_1(blocks: Tensor) -> Tensor:
    d, m, high, low = _split(blocks, 2, 2, 4)
    values = _bits(low, 4).flatten(1) | _fifth_bit(high)
    return _half(d) * values.float() + _half(m)


def _scaled(d: Tensor, scales: Tensor, values: Tensor) -> Tensor:
    """d (n, 1), scales (n, s), values (n, 256) -> (n, s, 256 / s): each run of values with its scale."""
    return (d * scales.float())[..., None] * values.float().unflatten(1, (scales.shape[1], -1))


def _scaled_with_minimum(d: Tensor, scales: Tensor, m: Tensor, minima: Tensor, values: Tensor) -> Tensor:
    return (_scaled(d, scales, values) - (m * minima.float())[..., None]).flatten(1)


def _halves_of(field: Tensor, width: int) -> Tensor:
    """(n, 64) bytes in two halves of 32 -> (n, 256): all lowest bits of a half before its next ones."""
    n = field.shape[0]
    return _bits(field.reshape(-1, 32), width).reshape(n, -1)


def _q2_k(blocks: Tensor) -> Tensor:
    scales, values, d, m = _split(blocks, 16, 64, 2)
    return _scaled_with_minimum(_half(d), scales & 0x0F, _half(m), scales >> 4, _halves_of(values, 2))


def _q3_k(blocks: Tensor) -> Tensor:
    high, low, packed_scales, d = _split(blocks, 32, 64, 12)
    scale_low = _bits(packed_scales[:, :8], 4).flatten(1)  # (n, 16)
    scale_high = _bits(packed_scales[:, 8:], 2).flatten(1)  # (n, 16)
    scales = (scale_low | (scale_high << 4)).to(torch.int8) - 32
    missing = _bits(high, 1).flatten(1) ^ 1  # an absent high bit takes 4 away
    values = _halves_of(low, 2).to(torch.int8) - (missing << 2).to(torch.int8)
    return _scaled(_half(d), scales, values).flatten(1)


def _six_bit_scales(field: Tensor) -> tuple[Tensor, Tensor]:
    """(n, 12) bytes -> 8 scales and 8 minima of six bits; the last four of each keep their upper bits in the first."""
    first, second, third = field.split(4, dim=1)
    scales = torch.cat([first & 0x3F, (third & 0x0F) | ((first >> 6) << 4)], dim=1)
    minima = torch.cat([second & 0x3F, (third >> 4) | ((second >> 6) << 4)], dim=1)
    return scales, minima


def _nibbles(field: Tensor) -> Tensor:
    """(n, 128) bytes in four quarters of 32 -> (n, 256): all low nibbles of a quarter before its high ones."""
    n = field.shape[0]
    return _bits(field.reshape(-1, 32), 4).reshape(n, -1)


def _q4_k(blocks: Tensor) -> Tensor:
    d, m, packed_scales, values = _split(blocks, 2, 2, 12)
    scales, minima = _six_bit_scales(packed_scales)
    return _scaled_with_minimum(_half(d), scales, _half(m), minima, _nibbles(values))


def _q5_k(blocks: Tensor) -> Tensor:
    d, m, packed_scales, high, low = _split(blocks, 2, 2, 12, 32)
    scales, minima = _six_bit_scales(packed_scales)
    values = _nibbles(low) | (_bits(high, 1).flatten(1) << 4)
    return _scaled_with_minimum(_half(d), scales, _half(m), minima, values)


def _q6_k(blocks: Tensor) -> Tensor:
    low, high, scales, d = _split(blocks, 128, 64, 16)
    n = blocks.shape[0]
    low_bits = _bits(low.reshape(-1, 64), 4).reshape(n, -1)
    values = (low_bits | (_halves_of(high, 2) << 4)).to(torch.int8) - 32
    return _scaled(_half(d), scales.view(torch.int8), values).flatten(1)


BLOCKS = {
    "Q8_0": Block(32, 34, _q8_0),
    "Q4_0": Block(32, 18, _q4_0),
    "Q4_1": Block(32, 20, _q4_1),
    "Q5_0": Block(32, 22, _q5_0),
    "Q5_1": Block(32, 24, _q5_1),
    "Q2_K": Block(SUPER_BLOCK, 84, _q2_k),
    "Q3_K": Block(SUPER_BLOCK, 110, _q3_k),
    "Q4_K": Block(SUPER_BLOCK, 144, _q4_k),
    "Q5_K": Block(SUPER_BLOCK, 176, _q5_k),
    "Q6_K": Block(SUPER_BLOCK, 210, _q6_k),
}
