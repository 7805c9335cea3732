"""LoRA files of every family change the networks as their own libraries would; nothing in them is dropped unsaid."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers as from_kohya
from diffusers.loaders.lora_conversion_utils import _convert_xlabs_flux_lora_to_diffusers as from_xlabs
from safetensors.torch import save_file
from torch import Tensor

from fluxserve.errors import CheckpointError, ConfigError
from fluxserve.models.flux1.lora_names import lora_targets
from fluxserve.models.flux1.names import linear_parts
from fluxserve.models.flux1.sizes import FLUX1, FULL, TINY
from fluxserve.models.flux1.transformer import FluxTransformer
from fluxserve.models.lora_target import LoraTarget
from fluxserve.placement.bind import bind
from fluxserve.tensors.reader import TensorReader
from fluxserve.weights.checkpoint import Checkpoint
from fluxserve.weights.lora.adapters import lora_files, parse_lora
from fluxserve.weights.lora.apply import MergedReader, side_branches, weigh
from fluxserve.weights.lora.file import Lora, read_lora
from fluxserve.weights.lora.strength import PEFT_WEIGHTS
from tests.conftest import MakeCheckpoint
from tests.weights.conftest import PUBLISHED_WIDTHS, PackedModel
from tests.weights.stored_files import open_quietly

RANK = 4
Targets = Mapping[str, LoraTarget]


@pytest.fixture(scope="module")
def full_width() -> Targets:
    """Of a transformer in published widths with one block of each kind, as dev has them."""
    flux = replace(FLUX1, depth=1, depth_single_blocks=1, guidance_embed=True)
    return lora_targets(replace(TINY, transformer=flux))


@pytest.fixture(scope="module")
def tiny() -> Targets:
    return lora_targets(replace(TINY, transformer=replace(TINY.transformer, guidance_embed=True)))


def matrices(target: LoraTarget, module: str, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """down and up of a module, seeded by its name."""
    generator = torch.Generator().manual_seed(sum(module.encode()))
    down = torch.randn(rank, target.columns, generator=generator) / target.columns**0.5
    return down, torch.randn(target.rows, rank, generator=generator)


def kohya(targets: Targets, prefix: str, alpha: float | None = 2.0) -> dict[str, Tensor]:
    """A LoRA of every module whose name begins with `prefix`."""
    tensors: dict[str, Tensor] = {}
    for module, target in targets.items():
        if module.startswith(prefix):
            down, up = matrices(target, module)
            tensors |= {f"{module}.lora_down.weight": down, f"{module}.lora_up.weight": up}
            if alpha is not None:
                tensors[f"{module}.alpha"] = torch.tensor(alpha)
    return tensors


def written(tensors: Mapping[str, Tensor], path: Path, targets: Targets, **metadata: str) -> Lora:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata=metadata or None)
    return read_lora(path, targets)


def change(lora: Lora, network: str, linear: str, rows: int, probe: Tensor) -> Tensor:
    """(rows, n): what the LoRA adds to the Linear's answer to a probe (in, n)."""
    total = torch.zeros(rows, probe.shape[1])
    for branch in lora.branches[network].get(linear, ()):  # type: ignore[index]
        total[branch.rows] += branch.scale * (branch.up @ (branch.down @ probe))
    return total


def converted_by(convert: Callable[..., dict[str, Tensor]], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' conversions consume what they are given."""
    return convert(dict(tensors))


def assert_as_diffusers(lora: Lora, converted: Mapping[str, Tensor], targets: Targets) -> None:
    """Each diffusers Linear's change equals the rows that the LoRA changes of the fused Linear."""
    converted = {key.removeprefix("transformer."): tensor for key, tensor in converted.items()}
    for linear, parts in linear_parts(1, 1).items():
        rows, columns = targets[linear].rows, targets[linear].columns
        probe = torch.randn(columns, 3, generator=torch.Generator().manual_seed(1))
        expected = []
        for part in parts:
            target = targets[part]
            up, down = converted.get(f"{part}.lora_B.weight"), converted.get(f"{part}.lora_A.weight")
            has = up is not None and down is not None
            delta = up @ (down @ probe) if has else torch.zeros(target.rows, 3)  # type: ignore[operator]
            expected.append(torch.cat(delta.chunk(2)[::-1]) if target.swap_halves else delta)
        actual = change(lora, "transformer", linear, rows, probe)
        assert torch.allclose(actual, torch.cat(expected), atol=1e-4), linear


def test_names_are_built_from_the_model_without_collisions() -> None:
    targets = lora_targets(replace(FULL, transformer=replace(FLUX1, guidance_embed=True)))
    assert len({name for name in targets if name.startswith("lora_unet_")}) == 314
    assert len({target.linear for target in targets.values() if target.network == "transformer"}) == 314
    assert len({target.linear for target in targets.values() if target.network == "clip"}) == 72
    assert len({target.linear for target in targets.values() if target.network == "t5"}) == 168
    assert targets["lora_unet_single_blocks_37_linear1"].linear == "single_blocks.37.linear1"
    mlp = targets["transformer.single_transformer_blocks.3.proj_mlp"]
    assert (mlp.linear, mlp.first_row, mlp.rows) == ("single_blocks.3.linear1", 9216, 12288)


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_kohya_blocks_are_diffusers_own(full_width: Targets, tmp_path: Path, alpha: float | None) -> None:
    tensors = kohya(full_width, "lora_unet_double", alpha) | kohya(full_width, "lora_unet_single", alpha)
    lora = written(tensors, tmp_path / "a.safetensors", full_width)
    assert_as_diffusers(lora, converted_by(from_kohya, tensors), full_width)


def test_kohya_embedders_and_final_layer_are_used_too(full_width: Targets, tmp_path: Path) -> None:
    """diffusers drops some of these; here each is scale * up @ down, on the BFL Linear of its name."""
    tensors = kohya(full_width, "lora_unet_")
    lora = written(tensors, tmp_path / "a.safetensors", full_width)
    assert len(lora.branches["transformer"]) == 8 + 2 + 10 + 3
    for linear in ("img_in", "time_in.out_layer", "guidance_in.in_layer", "final_layer.adaLN_modulation.1"):
        target = full_width[linear]
        down, up = matrices(target, "lora_unet_" + linear.replace(".", "_"))
        actual = change(lora, "transformer", linear, target.rows, torch.eye(target.columns))
        assert torch.allclose(actual, 2.0 / RANK * up @ down, atol=1e-5)


def test_xlabs_files_are_diffusers_own(full_width: Targets, tmp_path: Path) -> None:
    tensors = {}
    for module, target in full_width.items():
        if ".processor." in module and module.startswith(("double_blocks", "single_blocks")):
            tensors[f"{module}.down.weight"], tensors[f"{module}.up.weight"] = matrices(target, module)
    assert len(tensors) == 12
    lora = written(tensors, tmp_path / "a.safetensors", full_width)
    assert_as_diffusers(lora, converted_by(from_xlabs, tensors), full_width)


def test_onetrainer_mixtures_are_diffusers_own(full_width: Targets, tmp_path: Path) -> None:
    tensors = {
        key: tensor
        for key, tensor in kohya(full_width, "lora_transformer_").items()
        if "_attn_" in key or "embed" in key or key.startswith("lora_transformer_norm_out")  # what diffusers knows
    }
    lora = written(tensors, tmp_path / "a.safetensors", full_width)
    assert_as_diffusers(lora, converted_by(from_kohya, tensors), full_width)


@pytest.mark.parametrize(
    ("down", "up"), [("lora_down", "lora_up"), ("lora_A", "lora_B"), ("lora_A.default", "lora_B.default")]
)
@pytest.mark.parametrize("prefix", ["diffusion_model.", "base_model.model.", "transformer.", ""])
def test_bfl_names_are_read_under_every_prefix(tiny: Targets, tmp_path: Path, prefix: str, down: str, up: str) -> None:
    module = "double_blocks.1.txt_mlp.2"
    a, b = matrices(tiny[module], module)
    lora = written(
        {f"{prefix}{module}.{down}.weight": a, f"{prefix}{module}.{up}.weight": b}, tmp_path / "a.safetensors", tiny
    )
    (branch,) = lora.branches["transformer"][module]
    assert (branch.scale, lora.nbytes) == (1.0, a.nbytes + b.nbytes)
    assert torch.equal(branch.up @ branch.down, b @ a)


def test_text_encoders_are_found_in_every_spelling(tiny: Targets, tmp_path: Path) -> None:
    clip, t5 = "encoder.layers.1.mlp.fc2", "encoder.block.1.layer.1.DenseReluDense.wi_0"
    spellings = {
        "lora_te1_text_model_encoder_layers_1_mlp_fc2": clip,
        "text_encoders.clip_l.transformer.text_model.encoder.layers.1.mlp.fc2": clip,
        "text_encoder.text_model.encoder.layers.1.mlp.fc2": clip,
        "base_model.model.text_model.encoder.layers.1.mlp.fc2": clip,
        "base_model.model.encoder.layers.1.mlp.fc2": clip,
        "lora_te2_encoder_block_1_layer_1_DenseReluDense_wi_0": t5,
        "lora_te3_encoder_block_1_layer_1_DenseReluDense_wi_0": t5,
        "base_model.model.encoder.block.1.layer.1.DenseReluDense.wi_0": t5,
        "text_encoder_2.encoder.block.1.layer.1.DenseReluDense.wi_0": t5,
    }
    for spelling, linear in spellings.items():
        lora = written(kohya(tiny, spelling), tmp_path / "a.safetensors", tiny)
        network = "clip" if linear == clip else "t5"
        assert list(lora.branches[network]) == [linear]  # type: ignore[index]


def test_trained_words_are_left_out_and_told_of(
    tiny: Targets, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = {f"bundle_emb.a word.{encoder}": torch.ones(2, 8) for encoder in ("clip_l", "t5", "t5_out")}
    lora = written(kohya(tiny, "lora_te2_") | words, tmp_path / "a.safetensors", tiny)
    assert set(lora.skipped) == set(words)
    assert len(lora.branches["t5"]) == 14
    assert "words it was trained with are left out, the rest acts: bundle_emb.a word.clip_l" in caplog.text
    with pytest.raises(CheckpointError, match="holds no LoRA"):
        written(words, tmp_path / "b.safetensors", tiny)


def test_a_folder_of_loras_holds_files_and_folders(tmp_path: Path) -> None:
    for name in ("a.safetensors", "B.SAFETENSORS", "._a.safetensors", ".hidden.safetensors", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    for folder, file in {
        "c": PEFT_WEIGHTS,
        "d": "pytorch_lora_weights.safetensors",
        "e": "other",
        ".f": PEFT_WEIGHTS,
    }.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_bytes(b"x")
    (tmp_path / "g.safetensors").mkdir()
    assert {name: str(path.relative_to(tmp_path)) for name, path in lora_files(str(tmp_path)).items()} == {
        "B": "B.SAFETENSORS",
        "a": "a.safetensors",
        "c": "c/adapter_model.safetensors",
        "d": "d/pytorch_lora_weights.safetensors",
    }
    assert parse_lora(str(tmp_path / "c")) == (tmp_path / "c" / PEFT_WEIGHTS, None)
    assert parse_lora(f"{tmp_path / 'd'}:0.5") == (tmp_path / "d" / "pytorch_lora_weights.safetensors", 0.5)
    for wrong in (str(tmp_path / "e"), str(tmp_path / "e") + ":1", ":1", ""):
        with pytest.raises(ConfigError, match="no LoRA file"):
            parse_lora(wrong)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / PEFT_WEIGHTS).write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"two LoRAs in .* are named a"):
        lora_files(str(tmp_path))


def peft_file(targets: Targets, path: Path, alphas: bool, **metadata: str) -> dict[str, Tensor]:
    """A LoRA of every diffusers Linear of the tiny transformer. Returns it."""
    tensors: dict[str, Tensor] = {}
    for parts in linear_parts(TINY.transformer.depth, TINY.transformer.depth_single_blocks).values():
        for part in parts:
            down, up = matrices(targets[part], part)
            tensors |= {f"transformer.{part}.lora_A.weight": down, f"transformer.{part}.lora_B.weight": up * 0.2}
            if alphas:
                tensors[f"transformer.{part}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path, metadata=metadata or None)
    return tensors


def diffusers_velocity(folder: Path, tensors: Mapping[str, Tensor], alphas: bool, strength: float) -> Tensor:
    model = FluxTransformer2DModel.from_pretrained(  # type: ignore[no-untyped-call]
        folder / "transformer", dtype=torch.float32
    )
    adapter = {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
    given = {key: float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")}
    model.load_lora_adapter(adapter, network_alphas=given if alphas else None, prefix="transformer", adapter_name="a")
    model.set_adapters(["a"], [strength])
    img, txt, pooled, t, guidance = _inputs()
    ids = torch.zeros(16, 3)
    ids[:, 1], ids[:, 2] = torch.arange(16) // 4, torch.arange(16) % 4
    with torch.no_grad():
        answer = model(img, txt, pooled, t, ids, torch.zeros(8, 3), guidance)
    return answer.sample


def _inputs() -> tuple[Tensor, ...]:
    noise = torch.Generator().manual_seed(3)
    img, txt, pooled = (torch.randn(1, *size, generator=noise) for size in ((16, 64), (8, 40), (24,)))
    return img, txt, pooled, torch.tensor([0.7]), torch.tensor([3.5])


def velocity(model: FluxTransformer) -> Tensor:
    img, txt, pooled, t, guidance = _inputs()
    with torch.no_grad():
        return model(img, txt, model.modulation(t, guidance, pooled), model.rope(8, [(4, 4)]))


def built(checkpoint: Checkpoint, reader: TensorReader) -> FluxTransformer:
    with torch.device("meta"):
        model = FluxTransformer(checkpoint.architecture.sizes.transformer)
    packed = {key: reader.packed(key) for key in reader.keys()}
    bind(model, {key: weight or reader.read(key).float() for key, weight in packed.items()})
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("alphas", [False, True])
def test_peft_files_draw_as_diffusers_does_merged_and_beside(
    tiny_checkpoint: MakeCheckpoint, tiny: Targets, tmp_path: Path, alphas: bool
) -> None:
    folder, strength = tiny_checkpoint("dev", "diffusers"), 0.8
    tensors = peft_file(tiny, tmp_path / "a.safetensors", alphas)
    expected = diffusers_velocity(folder, tensors, alphas, strength)
    checkpoint = open_quietly(folder)
    weighted = weigh([(read_lora(tmp_path / "a.safetensors", tiny).branches["transformer"], strength)])
    plain = built(checkpoint, checkpoint.readers["transformer"])
    before = velocity(plain)
    with side_branches(plain, weighted):
        beside = velocity(plain)
    assert (beside - expected).abs().max() <= 1e-4
    assert (beside - before).abs().max() > 0.1
    assert torch.equal(velocity(plain), before)  # nothing is left of it
    in_float32 = MergedReader(_InFloat32(checkpoint.readers["transformer"]), weighted, {})
    assert (velocity(built(checkpoint, in_float32)) - expected).abs().max() <= 1e-4
    assert in_float32.unmerged == {}


class _InFloat32:
    """A reader of bfloat16 weights as float32, so that merging does not round."""

    def __init__(self, reader: TensorReader) -> None:
        self._reader = reader

    def __getattr__(self, name: str) -> object:
        return getattr(self._reader, name)

    def read(self, key: str) -> Tensor:
        return self._reader.read(key).float()

    source = "in float32"
    keys: Callable[[], list[str]]
    shape: Callable[[str], tuple[int, ...]]
    dtype: Callable[[str], torch.dtype]
    packed: Callable[[str], None]
    packed_meta: Callable[[str], None]
    release: Callable[[str], None]


def test_metadata_tells_the_scale_where_no_tensor_does(tiny: Targets, tmp_path: Path) -> None:
    fields = {"transformer.lora_alpha": 8, "transformer.r": RANK, "transformer.alpha_pattern": {"attn.to_q": 2}}
    peft_file(tiny, tmp_path / "a.safetensors", False, lora_adapter_metadata=json.dumps(fields))
    branches = read_lora(tmp_path / "a.safetensors", tiny).branches["transformer"]
    scales = {branch.first_row: branch.scale for branch in branches["double_blocks.0.img_attn.qkv"]}
    assert scales == {0: 0.5, 64: 2.0, 128: 2.0}
    fields["transformer.use_rslora"] = True
    peft_file(tiny, tmp_path / "a.safetensors", False, lora_adapter_metadata=json.dumps(fields))
    branches = read_lora(tmp_path / "a.safetensors", tiny).branches["transformer"]
    assert branches["img_in"][0].scale == 8 / RANK**0.5


def test_packed_weights_keep_their_bytes_and_get_the_change_beside(packed_model: PackedModel, tmp_path: Path) -> None:
    checkpoint = open_quietly(packed_model("q4_0", "bfl"))
    targets = lora_targets(PUBLISHED_WIDTHS)
    lora = written(kohya(targets, "lora_unet_double_blocks_0_img_mlp_0"), tmp_path / "a.safetensors", targets)
    weighted = weigh([(lora.branches["transformer"], 0.5), (lora.branches["transformer"], 0.25)])
    merged = MergedReader(checkpoint.readers["transformer"], weighted, {})
    assert set(merged.unmerged) == {"double_blocks.0.img_mlp.0"}
    model = built(checkpoint, merged)
    layer = model.double_blocks[0].get_submodule("img_mlp.0")
    x = torch.randn(1, 5, 256, generator=torch.Generator().manual_seed(0))
    before = layer(x)
    with side_branches(model, merged.unmerged):
        after = layer(x)
    delta = change(lora, "transformer", "double_blocks.0.img_mlp.0", 1024, x[0].T).T
    assert torch.allclose(after - before, 0.75 * delta, atol=1e-4)


@pytest.mark.parametrize(
    ("ending", "what"),
    [
        ("dora_scale", "DoRA"),
        ("lora_magnitude_vector", "DoRA"),
        ("lokr_t2", "LoKr of a convolution"),
        ("hada_t1", "LoHa of a convolution"),
        ("oft_blocks", "OFT"),
        ("diff", "a full-rank difference"),
        ("diff_b", "a difference of a bias"),
        ("bias", "a change of a bias"),
    ],
)
def test_other_kinds_are_refused_by_name_unless_they_change_nothing(
    tiny: Targets, tmp_path: Path, ending: str, what: str
) -> None:
    tensors = kohya(tiny, "diffusion_model.img_in")
    key = f"diffusion_model.img_in.{ending}"
    with pytest.raises(CheckpointError, match=rf"{key} is {what}, which fluxserve does not support"):
        written(tensors | {key: torch.ones(3)}, tmp_path / "a.safetensors", tiny)
    assert written(tensors | {key: torch.zeros(3)}, tmp_path / "a.safetensors", tiny).skipped == (key,)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda t: t.update({"lora_unet_extra.lora_up.weight": torch.ones(2, 2)}),
            "no place for: lora_unet_extra.lora_up",
        ),
        (lambda t: t.update({"lora_unet_img_in.weird": torch.ones(2)}), "no place for: lora_unet_img_in.weird"),
        (lambda t: t.pop("lora_unet_img_in.lora_up.weight"), "lora_unet_img_in lacks its up matrix"),
        (lambda t: t.pop("lora_unet_img_in.lora_down.weight"), "lora_unet_img_in lacks its down matrix"),
        (
            lambda t: t.update({"lora_unet_img_in.lora_up.weight": torch.ones(63, RANK)}),
            r"takes \(rank, 64\) and \(64, rank",
        ),
        (lambda t: t.update({"lora_unet_img_in.lora_down.weight": torch.ones(RANK, 128)}), r"takes \(rank, 64\)"),
        (lambda t: t.update({"lora_unet_img_in.alpha": torch.ones(2)}), "is no single number"),
        (lambda t: t.clear(), "holds no LoRA"),
        (
            lambda t: t.update({"a.query_norm.scale": torch.ones(2), "img_in.lora_A.weight": torch.ones(2)}),
            "a control LoRA",
        ),
    ],
)
def test_what_does_not_fit_is_an_error_that_names_it(
    tiny: Targets, tmp_path: Path, edit: Callable[[dict[str, Tensor]], object], says: str
) -> None:
    tensors = kohya(tiny, "lora_unet_img_in")
    edit(tensors)
    with pytest.raises(CheckpointError, match=says) as raised:
        written(tensors, tmp_path / "a.safetensors", tiny)
    assert "a.safetensors" in raised.value.message
