"""8-bit arithmetic from a checkpoint to its velocity: who computes so, what it takes, how far it is from exact."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fluxserve.completion import complete_request
from fluxserve.config import Compute, PipelineConfig
from fluxserve.errors import CheckpointError, ConfigError, DeviceError
from fluxserve.models.flux1.blocks import DoubleStreamBlock, SingleStreamBlock
from fluxserve.models.parts.attention import rotary_table
from fluxserve.models.synthetic import Layout, Packing
from fluxserve.pipeline.networks import draw_blueprint
from fluxserve.pipeline.pipeline import FluxPipeline
from fluxserve.placement.bind import EightBitLinear, PackedLinear, bind
from fluxserve.placement.device import check_compute
from fluxserve.placement.plan import GIB, resident_plan, streaming_plan
from fluxserve.placement.rates import Rates, measure_rates, packed_anew, packed_sample, step_seconds
from fluxserve.placement.weight_format import WeightFormat
from fluxserve.tensors.eight_bit import as_factor, product_bytes, takes
from fluxserve.tensors.packed import PackedWeight
from fluxserve.tensors.quantize import QuantMode
from fluxserve.weights.synthetic.write import write_model
from tests.conftest import MakeCheckpoint
from tests.placement.test_plan import WORK, full_size
from tests.placement.test_rates import FLUX1
from tests.weights.stored_files import open_quietly

CPU = torch.device("cpu")
MODES: tuple[QuantMode, ...] = ("int8", "fp8")
PACKINGS: tuple[Packing, ...] = ("bf16", "int8")


@pytest.fixture(autouse=True)
def capable(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests look at numbers, which every CPU gets right for small values."""
    monkeypatch.setattr("fluxserve.pipeline.networks.check_compute", lambda *_: None)


def load(model: Path, compute: Compute, **changes: object) -> FluxPipeline:
    config = PipelineConfig(str(model), device="cpu", compute=compute, **changes)  # type: ignore[arg-type]
    return FluxPipeline.load(config, lambda *_: None)


def velocity(pipeline: FluxPipeline) -> Tensor:
    (sample,) = pipeline.begin(complete_request(pipeline.card, "a cat", width=64, height=96, seed=5))
    noise = sample.latents
    pipeline.step([sample])
    assert sample.memory.clean is not None
    return noise - sample.memory.clean


def relative(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).square().mean().sqrt() / exact.square().mean().sqrt())


def linears(pipeline: FluxPipeline) -> Iterator[nn.Module]:
    for network in (pipeline.networks.model.denoiser, *pipeline.networks.model.text_encoders.values()):
        yield from (module for module in network.modules() if isinstance(module, nn.Linear | PackedLinear))


@pytest.mark.parametrize("family", ["schnell", "klein"])
@pytest.mark.parametrize(("compute", "bound"), [("int8", 0.03), ("fp8", 0.08)])
def test_the_velocity_is_near_the_exact_one(
    tiny_checkpoint: MakeCheckpoint, family: str, compute: Compute, bound: float
) -> None:
    model = tiny_checkpoint(family)
    exact, packed = load(model, "exact", dtype="float32"), load(model, compute, dtype="float32")
    assert 0.001 < relative(velocity(packed), velocity(exact)) < bound
    eight_bit = [linear for linear in linears(packed) if isinstance(linear, EightBitLinear)]
    assert len(eight_bit) > 20
    assert not any(isinstance(linear, EightBitLinear) for linear in linears(exact))
    assert packed.plan.peak_bytes < exact.plan.peak_bytes


@pytest.mark.parametrize("compute", ["int8", "fp8"])
@pytest.mark.parametrize("packing", ["bf16", "fp8", "int8", "q4_0"])
def test_streamed_from_any_file_it_draws_what_a_resident_model_draws(
    tmp_path: Path, compute: Compute, packing: str
) -> None:
    write_model(tmp_path / "m", "tiny", "schnell", "bfl", seed=1, packing=packing)  # type: ignore[arg-type]
    resident, streamed = (load(tmp_path / "m", compute, offload=offload) for offload in ("none", "stream"))
    assert torch.equal(velocity(streamed), velocity(resident))
    assert streamed.networks.plan.streamed
    block_bytes = [sum(parts) for parts in (streamed.blueprint.sizes().blocks, resident.blueprint.sizes().blocks)]
    assert block_bytes[0] == block_bytes[1]


@pytest.mark.parametrize("layout", ["bfl", "diffusers"])
def test_an_int8_copy_is_multiplied_with_as_it_lies(tmp_path: Path, layout: Layout) -> None:
    for packing in PACKINGS:
        write_model(tmp_path / packing, "tiny", "schnell", layout, seed=1, packing=packing)
    plain, copy = (open_quietly(tmp_path / packing).readers["transformer"] for packing in PACKINGS)
    weight_format = WeightFormat(torch.bfloat16, product="int8")
    matrices = [key for key in plain.keys() if len(plain.shape(key)) == 2 and takes(plain.shape(key))]
    assert len(matrices) > 20
    for key in matrices:
        assert weight_format.repacks(plain, key)
        assert not weight_format.repacks(copy, key)
        read, own = weight_format.read(copy, key, CPU), weight_format.read(plain, key, CPU)
        assert isinstance(read, PackedWeight)
        assert isinstance(own, PackedWeight)
        rows, columns = plain.shape(key)
        assert read.nbytes == rows * columns + 4 * rows == weight_format.meta(copy, key).nbytes
        assert all(torch.equal(read.parts[part], own.parts[part]) for part in own.parts)
    stored = [sum(path.stat().st_size for path in reader.files) for reader in (plain, copy)]
    assert stored[1] < 0.6 * stored[0]
    bf16, int8 = (load(tmp_path / packing, "int8", offload="stream") for packing in PACKINGS)
    assert relative(velocity(int8), velocity(bf16)) < 0.05


def test_an_int8_matrix_without_its_scales_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "m", "tiny", "schnell", "bfl", seed=1, packing="int8")
    path = tmp_path / "m" / "flux1-schnell-int8.safetensors"
    tensors = load_file(path)
    tensors["double_blocks.0.img_mlp.0.weight_scale"] = torch.ones(3, 1)
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"img_mlp\.0\.weight_scale has 3 values, .* takes 1 or \d+"):
        open_quietly(tmp_path / "m")
    del tensors["double_blocks.0.img_mlp.0.weight_scale"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"double_blocks\.0\.img_mlp\.0\.weight is int8 .* weight_scale"):
        open_quietly(tmp_path / "m")


def test_storage_packs_the_matrices_that_products_do_not_take(tiny_checkpoint: MakeCheckpoint) -> None:
    model = tiny_checkpoint()
    stored, native = load(model, "int8", storage="int8"), load(model, "int8")
    kinds = {
        type(one).__name__: type(other).__name__ for one, other in zip(linears(stored), linears(native), strict=True)
    }
    assert kinds == {"EightBitLinear": "EightBitLinear", "PackedLinear": "Linear", "Linear": "Linear"}
    assert relative(velocity(stored), velocity(native)) < 0.02
    with pytest.raises(ConfigError, match=r"--compute int8 .*: --storage must be native or int8, got fp8"):
        load(model, "int8", storage="fp8")


@pytest.mark.parametrize(("mode", "bound"), [("int8", 0.03), ("fp8", 0.08)])
@torch.inference_mode()
def test_blocks_of_a_large_models_shape_are_near_the_exact_ones(mode: QuantMode, bound: float) -> None:
    """Head width and proportions are FLUX.1's, half its width; a double and a single block of random weights."""
    hidden, heads, text, side = 1536, 12, 64, 16
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(0))
    ids = torch.cat([torch.zeros(text, 3), torch.cartesian_prod(torch.zeros(1), *2 * [torch.arange(float(side))])])
    rope = rotary_table(ids, (16, 56, 56), 10_000)
    blocks = [DoubleStreamBlock(hidden, heads, 4 * hidden), SingleStreamBlock(hidden, heads, 4 * hidden)]
    weights = [
        {name: draw(*own.shape) / own.shape[-1] ** 0.5 for name, own in block.named_parameters() if own.ndim == 2}
        for block in blocks
    ]
    rows = [0.5 * draw(1, block.MODULATION_ROWS * hidden) for block in blocks]
    image, words = draw(1, side * side, hidden), draw(1, text, hidden)

    def run() -> Tensor:
        img, txt = blocks[0](image, words, rows[0], rope)
        x = torch.cat([txt, img], dim=1)
        for block, row in zip(blocks[1:], rows[1:], strict=True):
            x = block(x, row, rope)
        return x - torch.cat([words, image], dim=1)

    for block, own in zip(blocks, weights, strict=True):
        bind(block, own)
    exact = run()
    for block, own in zip(blocks, weights, strict=True):
        bind(block, {name: as_factor(weight, mode) for name, weight in own.items() if "mod" not in name})
    assert 0.003 < relative(run(), exact) < bound


def test_the_plan_counts_a_byte_a_value_and_what_products_take() -> None:
    config = PipelineConfig("demo", device="cpu", compute="int8")
    drawn = draw_blueprint(config, lambda *_: None)
    exact = replace(drawn, product=None)
    costs = drawn.checkpoint.architecture.arithmetic
    plans = [one.plan("auto", GIB * 4) for one in (drawn, exact)]
    assert plans[0].work.extra_bytes == product_bytes("int8", costs.hidden + costs.mlp_hidden) > 0
    assert plans[1].work.extra_bytes == 0
    more = plans[0].work.step_bytes - plans[1].work.step_bytes
    assert more == plans[0].work.tokens * plans[0].work.extra_bytes
    reader, layout = drawn.checkpoint.readers[drawn.checkpoint.denoiser.name], drawn.checkpoint.denoiser.layout
    assert layout is not None
    own = [key for key in reader.keys() if key.startswith(layout.prefixes) and not layout.on_host(key)]
    values = sum(torch.Size(reader.shape(key)).numel() for key in own if takes(reader.shape(key)))
    assert values < sum(drawn.sizes().blocks) < 1.15 * values


def test_expected_times_are_of_the_arithmetic_and_of_packing_on_the_way(tiny_checkpoint: MakeCheckpoint) -> None:
    checkpoint = open_quietly(tiny_checkpoint())
    reader, layout = checkpoint.readers["transformer"], checkpoint.denoiser.layout
    assert layout is not None
    resident, streamed = (make(full_size(1), WORK, 40 * GIB, "cpu") for make in (resident_plan, streaming_plan))
    fmt, exact = WeightFormat(torch.float32, product="int8"), WeightFormat(torch.float32, "int8")
    sample = packed_sample(reader, layout, streamed, fmt, CPU)
    assert sample is not None
    assert packed_anew(reader, layout, streamed, fmt, CPU) == "int8"
    assert packed_anew(reader, layout, resident, fmt, CPU) is None
    assert packed_anew(reader, layout, streamed, exact, CPU) is None
    assert packed_anew(reader, layout, streamed, fmt, torch.device("cuda")) is None  # packed once, in pinned memory
    rates = measure_rates(checkpoint.architecture.arithmetic, CPU, torch.float32, sample, "int8")
    assert rates.unpack == float("inf")
    assert 1e5 < rates.pack < 1e12
    assert 1e7 < rates.linear < 1e16
    times = [step_seconds(FLUX1, streamed, Rates(4e11, 2e11, 8e9, pack=pack, copies_hide=False)) for pack in (1e9, 2e9)]
    assert times[0] - times[1] == pytest.approx(streamed.streamed_bytes / 2e9)


def test_a_files_own_bytes_are_not_packed_at_each_step(tmp_path: Path) -> None:
    write_model(tmp_path / "m", "tiny", "schnell", "bfl", seed=1, packing="fp8")
    checkpoint = open_quietly(tmp_path / "m")
    reader, layout = checkpoint.readers["transformer"], checkpoint.denoiser.layout
    assert layout is not None
    plan = streaming_plan(full_size(1), WORK, 40 * GIB, "cpu")
    made = {mode: packed_anew(reader, layout, plan, WeightFormat(torch.float32, product=mode), CPU) for mode in MODES}
    assert made == {"int8": "int8", "fp8": None}


def test_the_card_tells_it(tiny_checkpoint: MakeCheckpoint) -> None:
    for compute in ("exact", "int8"):
        placement = load(tiny_checkpoint(), compute).card.placement
        assert placement is not None
        assert placement.compute == compute
        assert f"products {compute}" in placement.summary


@pytest.mark.parametrize(
    ("device", "capability", "units", "allowed"),
    [
        ("cpu", None, {}, "exact"),
        ("cpu", None, {"avx512_bf16": True}, "exact"),
        ("cpu", None, {"avx512_vnni": True}, "exact or int8"),
        ("cpu", None, {"avx_vnni": True}, "exact or int8"),
        ("cpu", None, {"amx_int8": True}, "exact or int8"),
        ("mps", None, {"amx_int8": True}, "exact"),
        ("cuda", (7, 5), {"amx_int8": True}, "exact"),
        ("cuda", (8, 0), {}, "exact or int8"),
        ("cuda", (8, 6), {}, "exact or int8"),
        ("cuda", (8, 9), {}, "exact or int8 or fp8"),
        ("cuda", (9, 0), {}, "exact or int8 or fp8"),
        ("cuda", (12, 0), {}, "exact or int8 or fp8"),
    ],
)
def test_devices_refuse_what_they_do_not_have_and_say_what_they_do(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    capability: tuple[int, int] | None,
    units: dict[str, bool],
    allowed: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    choices: tuple[Compute, ...] = ("exact", "int8", "fp8")
    for compute in choices:
        if compute in allowed:
            check_compute(compute, torch.device(device))
        else:
            with pytest.raises(DeviceError) as error:
                check_compute(compute, torch.device(device))
            assert error.value.message == f"compute must be {allowed} on this device ({device}), got {compute!r}"
