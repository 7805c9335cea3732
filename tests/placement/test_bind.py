"""Linears whose matrices stay packed."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxserve.placement.bind import PackedLinear, unpack_to_scratch
from fluxserve.tensors.quantize import quantize


def packed_linear(rows: int, columns: int, seed: int) -> tuple[PackedLinear, Tensor]:
    """A layer and its matrix as it unpacks; beyond some rows a matrix is unpacked in pieces."""
    generator = torch.Generator().manual_seed(seed)
    linear = PackedLinear(torch.randn(rows, generator=generator))
    linear.packed = quantize(torch.randn(rows, columns, generator=generator), "int8")
    return linear, linear.packed.unpack(torch.float32)


def test_layers_take_turns_in_one_piece_of_memory() -> None:
    layers = [packed_linear(rows, 512, seed) for seed, rows in enumerate((2048, 16, 3000, 600))]
    with torch.inference_mode():
        for linear, matrix in layers * 2:
            x = torch.randn(3, 512)
            assert torch.equal(linear(x), F.linear(x, matrix, linear.bias))
    places = {
        unpack_to_scratch(linear.packed, torch.float32).data_ptr() for linear, _ in (layers[0], layers[2], layers[3])
    }
    assert len(places) == 1


def test_threads_do_not_share_it() -> None:
    (ours, matrix), (theirs, _) = packed_linear(2048, 512, 0), packed_linear(2048, 512, 1)
    unpacked = unpack_to_scratch(ours.packed, torch.float32)
    other = threading.Thread(target=unpack_to_scratch, args=(theirs.packed, torch.float32))
    other.start()
    other.join()
    assert torch.equal(unpacked, matrix)
