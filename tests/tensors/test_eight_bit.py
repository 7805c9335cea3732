"""Products in 8 bits: their numbers against float64, their error, and what they do not take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fluxserve.tensors import eight_bit
from fluxserve.tensors.quantize import QUANT_DTYPES, ByteValues, QuantMode, pack_values, quantize, quantize_rows

MODES: list[tuple[QuantMode, float]] = [("int8", 0.0135), ("fp8", 0.038)]
"""With the largest relative error, rms, for normal values."""


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(error: Tensor, of: Tensor) -> float:
    return float(error.double().square().mean().sqrt() / of.double().square().mean().sqrt())


@pytest.mark.parametrize(("mode", "bound"), MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("shape", [(1, 64, 48), (3, 1024, 1040), (1100, 320, 1040)])
def test_the_error_is_that_of_the_numbers_alone(
    mode: QuantMode, bound: float, dtype: torch.dtype, biased: bool, shape: tuple[int, int, int]
) -> None:
    """Against float64: of the packed values next to nothing, of the exact ones what the mode is known for."""
    rows, width, columns = shape
    x, weight = drawn(rows, width).to(dtype), drawn(columns, width, seed=1) / width**0.5
    bias = drawn(columns, seed=2).to(dtype) if biased else None
    factor = eight_bit.as_factor(weight, mode)
    product = eight_bit.linear(x, factor, bias)
    assert (product.shape, product.dtype) == ((rows, columns), dtype)
    values, scale = quantize_rows(x, QUANT_DTYPES[mode])
    add = 0.0 if bias is None else bias.double()
    packed = (values.double() * scale.double()) @ factor.unpack(torch.float32).double().T + add
    rounding = 1e-6 if (mode, dtype) == ("int8", torch.float32) else 0.005
    assert relative(product - packed, packed) < rounding
    exact = x.double() @ weight.double().T + add
    if rows * columns > 10_000:
        assert 0.4 * bound < relative(product - exact, exact) < bound


@pytest.mark.parametrize(("mode", "bound"), MODES)
def test_rows_and_columns_of_any_size_keep_their_precision(mode: QuantMode, bound: float) -> None:
    """A token a thousand times larger than the next, and an output channel as well."""
    x, weight = drawn(40, 256), drawn(64, 256, seed=1)
    x[7] *= 1000
    weight[5] *= 1000
    product, exact = eight_bit.linear(x, eight_bit.as_factor(weight, mode), None), x @ weight.T
    for token in (6, 7):
        for channel in (4, 5):
            size = float(x[token].norm() * weight[channel].norm())
            assert abs(float(product[token, channel] - exact[token, channel])) < 5 * bound * size / 256**0.5


@pytest.mark.parametrize("mode", ["int8", "fp8"])
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_so_and_touches_no_other_token(
    mode: QuantMode, value: float, dtype: torch.dtype
) -> None:
    x, factor = drawn(2, 20, 64).to(dtype), eight_bit.as_factor(drawn(32, 64, seed=1), mode)
    whole = eight_bit.linear(x, factor, None)
    x[1, 3, 9] = value
    broken = eight_bit.linear(x, factor, None)
    assert not broken[1, 3].isfinite().any()
    broken[1, 3] = whole[1, 3]
    assert torch.equal(broken, whole)


@pytest.mark.parametrize("mode", ["int8", "fp8"])
def test_rows_of_zeros_give_the_bias(mode: QuantMode) -> None:
    factor, bias = eight_bit.as_factor(torch.zeros(32, 64), mode), torch.arange(32.0)
    assert torch.equal(eight_bit.linear(drawn(20, 64), factor, bias), bias.expand(20, 32))
    factor = eight_bit.as_factor(drawn(32, 64), mode)
    assert torch.equal(eight_bit.linear(torch.zeros(20, 64), factor, bias), bias.expand(20, 32))


@pytest.mark.parametrize("mode", ["int8", "fp8"])
@pytest.mark.parametrize("scale", [None, torch.tensor(0.5), drawn(32).abs()])
def test_a_files_own_bytes_are_multiplied_with_as_they_lie(mode: QuantMode, scale: Tensor | None) -> None:
    packed = pack_values((drawn(32, 64) * 20).to(QUANT_DTYPES[mode]), scale)
    factor = eight_bit.as_factor(packed, mode)
    assert factor.parts["data"].data_ptr() == packed.parts["data"].data_ptr()
    assert torch.equal(factor.unpack(torch.float32), packed.unpack(torch.float32))
    other = eight_bit.as_factor(packed, "fp8" if mode == "int8" else "int8")
    assert relative(other.unpack(torch.float32) - packed.unpack(torch.float32), packed.unpack(torch.float32)) < 0.03
    assert other.parts["data"].data_ptr() != packed.parts["data"].data_ptr()


def test_five_bits_of_exponent_are_packed_anew() -> None:
    packed = pack_values(drawn(32, 64).to(torch.float8_e5m2), None)
    assert not eight_bit.holds(packed, "fp8")
    factor = eight_bit.as_factor(packed, "fp8")
    assert isinstance(factor.scheme, ByteValues)
    assert factor.scheme.dtype == torch.float8_e4m3fn


def test_shapes_that_products_do_not_take() -> None:
    assert eight_bit.takes((16, 3072))
    for shape in ((15, 64), (64, 24), (64,), (16, 16, 3)):
        assert not eight_bit.takes(shape)


@pytest.mark.parametrize("mode", ["int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.filterwarnings("default")  # torch's compiler warns of its own deprecations
def test_compiled_it_is_one_graph_and_the_same(mode: QuantMode, dtype: torch.dtype) -> None:
    factor, bias = eight_bit.as_factor(drawn(1040, 512), mode), drawn(1040, seed=2).to(dtype)
    x = drawn(1, 600, 512, seed=1).to(dtype)
    compiled = torch.compile(lambda x: eight_bit.linear(x, factor, bias), backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(x).float(), eight_bit.linear(x, factor, bias).float(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_value_of_a_row_has_the_largest_number(dtype: torch.dtype) -> None:
    rows = drawn(300, 2048).to(dtype)
    kept = rows.clone()
    values, scale = quantize_rows(rows, torch.int8)
    assert torch.equal(rows, kept)
    assert torch.equal(scale, rows.float().abs().amax(1, keepdim=True) / 127)
    assert (values.abs().amax(1) == 127).all()


def test_weights_packed_in_pieces_are_those_packed_whole() -> None:
    weight = drawn(700, 4096)
    whole, halves = quantize(weight, "int8"), [quantize(half, "int8") for half in weight.split(29)]
    assert torch.equal(whole.parts["data"], torch.cat([half.parts["data"] for half in halves]))
    assert torch.equal(whole.parts["scale"], torch.cat([half.parts["scale"] for half in halves]))
