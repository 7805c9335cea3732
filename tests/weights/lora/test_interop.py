"""What diffusers, peft and fluxserve do with kinds of LoRA files: docs/interop_files.md, row by row."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import gguf
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from fluxserve.errors import CheckpointError
from fluxserve.models.flux1.lora_names import lora_targets
from fluxserve.models.flux1.sizes import FLUX1, TINY
from fluxserve.models.lora_keys import Kind, parse_key
from fluxserve.models.lora_target import LoraTarget
from fluxserve.weights.lora.file import read_lora
from tests.interop_files import BESIDES, LORA_FILES
from tests.weights.lora.test_lora import RANK, matrices

ALPHA = 2.0
WIDE = replace(FLUX1, depth=1, depth_single_blocks=1, guidance_embed=True)
TARGETS = lora_targets(replace(TINY, transformer=WIDE))
BLOCKS = ("double_blocks_0_img_attn_qkv", "double_blocks_0_txt_mlp_0", "single_blocks_0_linear2")
OUTER = ("img_in", "txt_in", "time_in_in_layer", "final_layer_linear", "final_layer_adaLN_modulation_1")
PARTS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff.net.2", "single_transformer_blocks.0.proj_out")
T5_LINEAR = "encoder_block_0_layer_0_SelfAttention_q"
CLIP_LINEAR, CLIP_PART = "text_model_encoder_layers_0_mlp_fc1", "text_model.encoder.layers.0.self_attn.q_proj"


def low_rank(modules: list[str], down: str, up: str, alpha: float | None = None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module in modules:
        tensors[f"{module}.{down}.weight"], tensors[f"{module}.{up}.weight"] = matrices(TARGETS[module], module)
        if alpha is not None:
            tensors[f"{module}.alpha"] = torch.tensor(alpha)
    return tensors


def kohya(*modules: str) -> dict[str, Tensor]:
    return low_rank(list(modules), "lora_down", "lora_up", ALPHA)


def peft(prefix: str, modules: tuple[str, ...] = PARTS, down: str = "lora_A", up: str = "lora_B") -> dict[str, Tensor]:
    return low_rank([prefix + module for module in modules], down, up)


UNET = [f"lora_unet_{module}" for module in BLOCKS]
MIXTURE = [
    f"lora_transformer_{name}" for name in ("transformer_blocks_0_attn_to_q", "single_transformer_blocks_0_attn_to_k")
]
COMFY = [f"diffusion_model.{name}" for name in ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear2")]
PROCESSORS = [f"double_blocks.0.processor.{name}" for name in ("qkv_lora1", "proj_lora2")]
CONFIG = {"r": RANK, "lora_alpha": ALPHA, "peft_type": "LORA", "target_modules": [*PARTS]}
CONFIGS: dict[str, dict[str, object]] = {
    "peft: LoRA": CONFIG,
    "peft: LoRA, `use_rslora`": CONFIG | {"use_rslora": True},
    "peft: LoRA, `alpha_pattern` for all": CONFIG | {"lora_alpha": 8, "alpha_pattern": {".*": ALPHA}},
    "peft: LoHa": CONFIG | {"peft_type": "LOHA", "alpha": ALPHA},
    "peft: LoKr": CONFIG | {"peft_type": "LOKR", "alpha": ALPHA, "decompose_factor": 4},
    "sd-scripts: blocks, beside peft's `adapter_config.json`": CONFIG,
}
"""Files that have an adapter_config.json beside them."""


def lokr(*modules: str, whole: bool = False) -> dict[str, Tensor]:
    """Its left factor is (4, 4)."""
    generator = torch.Generator().manual_seed(3)
    tensors: dict[str, Tensor] = {}
    for module in modules:
        rows, columns = TARGETS[module].rows // 4, TARGETS[module].columns // 4
        tensors[f"{module}.lokr_w1"] = torch.randn(4, 4, generator=generator)
        if whole:
            tensors[f"{module}.lokr_w2"] = torch.randn(rows, columns, generator=generator)
        else:
            tensors[f"{module}.lokr_w2_a"] = torch.randn(rows, RANK, generator=generator)
            tensors[f"{module}.lokr_w2_b"] = torch.randn(RANK, columns, generator=generator)
    return tensors


def loha(*modules: str) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module in modules:
        down, up = matrices(TARGETS[module], module)
        tensors |= {f"{module}.hada_w{half}_a": up.clone() for half in (1, 2)}
        tensors |= {f"{module}.hada_w{half}_b": down.clone() for half in (1, 2)}
    return tensors


def with_alpha(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    modules = {found[0] for key in tensors if (found := parse_key(key))}
    return tensors | {f"{module}.alpha": torch.tensor(ALPHA) for module in modules}


FILES: dict[str, dict[str, Tensor]] = {
    "sd-scripts: blocks": kohya(*UNET),
    "sd-scripts: blocks, embedders and final layer": kohya(*UNET, *(f"lora_unet_{module}" for module in OUTER)),
    "sd-scripts: blocks, and T5 as `lora_te3_`": kohya(*UNET, f"lora_te3_{T5_LINEAR}"),
    "sd-scripts: blocks, and CLIP as `lora_te1_`": kohya(*UNET, f"lora_te1_{CLIP_LINEAR}"),
    "sd-scripts: blocks, beside peft's `adapter_config.json`": kohya(*UNET),
    "lycoris: LoHa in sd-scripts' names": with_alpha(loha(*UNET)),
    "lycoris: LoKr in sd-scripts' names": with_alpha(lokr(*UNET)),
    "lycoris: LoKr of whole factors": with_alpha(lokr(UNET[0], whole=True)),
    "ai-toolkit: LoKr as `lycoris_`": with_alpha(lokr(*(f"lycoris_{name.replace('.', '_')}" for name in PARTS))),
    "ai-toolkit: LoKr under `diffusion_model.`": with_alpha(lokr(*COMFY)),
    "OneTrainer: attention": kohya(*MIXTURE),
    "OneTrainer: attention, and T5 as `lora_te2_`": kohya(*MIXTURE, f"lora_te2_{T5_LINEAR}"),
    "OneTrainer: attention, and words in `bundle_emb.`": kohya(*MIXTURE) | {"bundle_emb.a.t5": torch.ones(2, 4)},
    "BFL's names under `diffusion_model.`, `lora_A`": low_rank(COMFY, "lora_A", "lora_B"),
    "XLabs": low_rank(PROCESSORS, "down", "up"),
    "diffusers: metadata": peft("transformer."),
    "diffusers: no metadata": peft("transformer."),
    "`lora_down` and `.alpha` under `transformer.`": low_rank(
        [f"transformer.{part}" for part in PARTS], "lora_down", "lora_up", ALPHA
    ),
    "diffusers: transformer and `text_encoder.`": peft("transformer.") | peft("text_encoder.", (CLIP_PART,)),
    "peft: LoRA": peft("base_model.model."),
    "peft: LoRA, `use_rslora`": peft("base_model.model."),
    "peft: LoRA, `alpha_pattern` for all": peft("base_model.model."),
    "peft: LoHa": loha(*(f"base_model.model.{part}" for part in PARTS)),
    "peft: LoKr": lokr(*(f"base_model.model.{part}" for part in PARTS)),
}


def written(name: str, folder: Path) -> Path:
    path = folder / "adapter_model.safetensors"
    metadata = {f"transformer.{key}": value for key, value in CONFIG.items()}
    told = {"lora_adapter_metadata": json.dumps(metadata)} if name == "diffusers: metadata" else None
    save_file(FILES[name], path, metadata=told)
    if name in CONFIGS:
        (folder / "adapter_config.json").write_text(json.dumps(CONFIGS[name]))
    return path


Changes = Mapping[tuple[str, str], Tensor]
"""(network, Linear) -> what is added to its answer to a probe."""


def probe(columns: int) -> Tensor:
    return torch.randn(columns, 2, generator=torch.Generator().manual_seed(1))


def added(some: Iterable[tuple[LoraTarget, Tensor]]) -> Changes:
    """some: a target and the answer of its rows to the probe, as the file has them."""
    changes: dict[tuple[str, str], Tensor] = {}
    for target, answer in some:
        rows = TARGETS[target.linear].rows if target.network == "transformer" else target.rows
        total = changes.setdefault((target.network, target.linear), torch.zeros(rows, 2))
        swapped = torch.cat(answer.chunk(2)[::-1]) if target.swap_halves else answer
        total[target.first_row : target.first_row + len(answer)] += swapped
    return changes


def transformer() -> FluxTransformer2DModel:
    """In published widths, its numbers one zero each; what is loaded beside it has its own."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)  # type: ignore[no-untyped-call]
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False))
    return model


def of_layers(model: nn.Module, prefix: str = "") -> Iterator[tuple[LoraTarget, Tensor]]:
    """What peft's layers in a model add."""
    for name, layer in model.named_modules():
        if isinstance(layer, BaseTunerLayer):
            target = TARGETS[prefix + name.removeprefix("base_model.model.")]
            (adapter,) = layer.active_adapters
            yield target, layer.get_delta_weight(adapter).detach() @ probe(target.columns)


def by_diffusers(path: Path) -> Changes:
    clip = TINY.clip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=clip.vocab_size,
            hidden_size=clip.hidden_size,
            intermediate_size=clip.intermediate_size,
            num_hidden_layers=clip.num_hidden_layers,
            num_attention_heads=clip.num_attention_heads,
        )
    )
    pipeline = FluxPipeline(None, None, text, None, None, None, transformer())  # type: ignore[no-untyped-call]
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name)
    return added([*of_layers(pipeline.transformer), *of_layers(text, "text_encoder.")])


def by_peft(path: Path) -> Changes:
    return added(of_layers(PeftModel.from_pretrained(transformer(), str(path.parent))))


def by_fluxserve(path: Path) -> Changes:
    found = []
    for network, linears in read_lora(path, TARGETS).branches.items():
        for linear, branches in linears.items():
            for branch in branches:
                columns = next(t.columns for t in TARGETS.values() if (t.network, t.linear) == (network, linear))
                target = LoraTarget(network, linear, branch.first_row, branch.height, columns)
                found.append((target, branch.scale * branch.answer(probe(columns).T).T))
    return added(found)


def at_rank_strength(name: str) -> Changes:
    """All of the file, as if alpha were the rank."""
    modules: dict[str, dict[Kind, Tensor]] = {}
    for key, tensor in FILES[name].items():
        if found := parse_key(key):
            modules.setdefault(found[0], {})[found[1]] = tensor
    return added(
        (TARGETS[module], _matrix(parts) @ probe(TARGETS[module].columns)) for module, parts in modules.items()
    )


def _matrix(parts: Mapping[Kind, Tensor]) -> Tensor:
    if "down" in parts:
        return parts["up"] @ parts["down"]
    if "hada_w1_a" in parts:
        return (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    second = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
    return torch.kron(parts["lokr_w1"], second)


def verdict(name: str, path: Path, reader: Callable[[Path], Changes]) -> str:
    """In the words of the table."""
    whole = at_rank_strength(name)
    try:
        changes = reader(path)
    except CheckpointError:
        return "refuses it by name"
    except Exception as error:
        return f"raises {type(error).__name__}"
    acting = {place: change for place, change in changes.items() if change.any()}
    if not acting:
        return "nothing of it"
    (strength,) = {round(float(change.norm() / whole[place].norm()), 3) for place, change in acting.items()}
    share = "all of it" if len(acting) == len(whole) else f"{len(acting)} of {len(whole)} layers, the others dropped"
    return f"{share}, at {strength:g}"


@pytest.mark.parametrize("name", LORA_FILES)
def test_libraries_do_what_the_page_says(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    path = written(name, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_diffusers, of_peft = (verdict(name, path, reader) for reader in (by_diffusers, by_peft))
    ours = verdict(name, path, by_fluxserve) + ("; warns of the words" if "words" in caplog.text else "")
    seen = LORA_FILES[name]
    assert (of_diffusers, of_peft, ours) == (seen.diffusers, seen.peft, seen.fluxserve)


def test_the_page_tells_of_every_file() -> None:
    assert FILES.keys() == LORA_FILES.keys()


def test_besides_gguf_is_rounded_in_float16() -> None:
    rows = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).numpy()
    packed = gguf.quantize(rows, gguf.GGMLQuantizationType.Q8_0)
    exact = torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType.Q8_0))
    layer = GGUFLinear(64, 64, bias=False, compute_dtype=torch.float32)  # type: ignore[no-untyped-call]
    layer.weight = GGUFParameter(torch.from_numpy(packed), quant_type=gguf.GGMLQuantizationType.Q8_0)  # type: ignore[no-untyped-call]
    theirs = layer(torch.eye(64)).T
    assert not torch.equal(theirs, exact)
    assert torch.equal(theirs, exact.half().float())


def test_besides_fuse_and_unfuse_leave_half_the_strength() -> None:
    model = FluxTransformer2DModel(  # type: ignore[no-untyped-call]
        num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=1, axes_dims_rope=(4, 4, 8)
    )
    model.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["attn.to_q"], init_lora_weights=False))
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    assert layers
    for strength in (0.5, 0.25):
        model.fuse_lora(lora_scale=0.5)  # type: ignore[no-untyped-call]
        model.unfuse_lora()  # type: ignore[no-untyped-call]
        assert {layer.scaling["default"] for layer in layers} == {strength}


def test_each_thing_besides_has_a_test() -> None:
    tests = [name for name in globals() if name.startswith("test_besides_")]
    assert sorted(name.split("_")[2] for name in tests) == sorted(BESIDES)
