"""Qwen3 as a text encoder: the states of some of its layers. The layers after the last one that is read never run.

transformers provides the network, built from our own reading of its sizes. Names are those of its `Qwen3Model`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding

from fluxserve.models.cancellation import CancellationPoint
from fluxserve.models.family import BlockLayout, Part
from fluxserve.models.sizes import Config, SizeReader, count
from fluxserve.models.synthetic import SyntheticNetwork, as_named
from fluxserve.tensors.reader import Recipe, Shapes, TensorReader, with_tables

PREFIX = "model."
EMBEDDING = "embed_tokens.weight"
MARKER = "layers.0.self_attn.q_norm.weight"
GGUF_MARKER = "blk.0.attn_q_norm.weight"
ROPE_THETA = 1_000_000.0
NORM_EPS = 1e-6
EMBEDDING_SCALE = 1.0

_LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
"""Each tensor of a layer, and what llama.cpp calls it."""
_NUMBERED = re.compile(r"(?:layers|blk)\.(\d+)\.")


def qwen3_part(layers: int) -> Part:
    """The encoder up to a layer, counted from 1, for the families that read no later one."""
    return Part(
        name="qwen3",
        title="Qwen3 text encoder",
        role="text_encoder",
        folder="text_encoder",
        markers=(PREFIX + MARKER, MARKER, GGUF_MARKER),
        canonical=partial(canonical_qwen3, layers),
        bundle_prefix="text_encoders.qwen3_4b.transformer.",
        gguf_architectures=("qwen3",),
        layout=BlockLayout(prefixes=("layers.",), tables={EMBEDDING: ()}),
        float16=False,
        tables=(EMBEDDING,),
        reads=partial(reads_qwen3, layers),
    )


@dataclass(frozen=True)
class Qwen3Params:
    """Sizes of the layers that are read. num_layers: of those alone."""

    vocab_size: int
    hidden_size: int
    mlp_hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int


def canonical_qwen3(layers: int, reader: TensorReader) -> TensorReader:
    """The first `layers` layers and the embedding, from transformers' names (with or without `model.`) or GGUF's."""
    names = {_plain(key): key for key in reader.keys()}
    return with_tables(reader, {name: key for name, key in names.items() if reads_qwen3(layers, key)}, (EMBEDDING,))


def _plain(key: str) -> str:
    name = key.removeprefix(PREFIX)
    if name == "token_embd.weight":
        return EMBEDDING
    if name.startswith("blk."):
        _, number, layer, kind = (*name.split(".", 3), "")[:4]
        own = next((ours for ours, theirs in _LAYER.items() if theirs == layer), layer)
        return f"layers.{number}.{own}.{kind}"
    return name


def reads_qwen3(layers: int, key: str) -> bool:
    """Whether a tensor is read, by any of its names: the head, the final norm and later layers are not."""
    name = _plain(key)
    numbered = _NUMBERED.match(name)
    if numbered is not None:
        return int(numbered[1]) < layers
    return name not in ("norm.weight", "lm_head.weight", "output_norm.weight", "output.weight")


def qwen3_params(reader: TensorReader, config: Config) -> Qwen3Params:
    """Raises: CheckpointError where a tensor is missing, or shapes and config disagree."""
    sizes = SizeReader(reader, config)
    vocab, hidden = sizes.shape(EMBEDDING, 2)
    head_dim = sizes.agreed("head_dim", sizes.shape(MARKER, 1)[0])
    rows = {name: sizes.shape(f"layers.0.self_attn.{name}_proj.weight", 2)[0] for name in "qk"}
    return Qwen3Params(
        vocab_size=vocab,
        hidden_size=sizes.agreed("hidden_size", hidden),
        mlp_hidden=sizes.agreed("intermediate_size", sizes.shape("layers.0.mlp.gate_proj.weight", 2)[0]),
        num_layers=count(reader.keys(), "layers."),
        num_heads=sizes.agreed("num_attention_heads", sizes.divided("the width of q", rows["q"], head_dim)),
        num_kv_heads=sizes.agreed("num_key_value_heads", sizes.divided("the width of k", rows["k"], head_dim)),
        head_dim=head_dim,
    )


def qwen3_shapes(params: Qwen3Params) -> Shapes:
    """Every tensor that is read."""
    hidden, queries, keys = (
        params.hidden_size,
        params.num_heads * params.head_dim,
        params.num_kv_heads * params.head_dim,
    )
    layer = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "self_attn.q_norm": (params.head_dim,),
        "self_attn.k_norm": (params.head_dim,),
        "mlp.gate_proj": (params.mlp_hidden, hidden),
        "mlp.up_proj": (params.mlp_hidden, hidden),
        "mlp.down_proj": (hidden, params.mlp_hidden),
        "input_layernorm": (hidden,),
        "post_attention_layernorm": (hidden,),
    }
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (params.vocab_size, hidden)}
    for number in range(params.num_layers):
        shapes |= {f"layers.{number}.{name}.weight": shape for name, shape in layer.items()}
    return shapes


def qwen3_recipes(shapes: Shapes) -> dict[str, Recipe]:
    """Of a file as transformers saves it. shapes: of what it holds."""
    return {key: Recipe((PREFIX + key,)) for key in shapes}


def qwen3_gguf_recipes(shapes: Shapes) -> dict[str, Recipe]:
    """Of a GGUF file."""
    return {key: Recipe((_gguf_name(key),)) for key in shapes}


def _gguf_name(key: str) -> str:
    if not key.startswith("layers."):
        return {EMBEDDING: "token_embd.weight"}.get(key, "output_norm.weight")
    _, number, name = key.split(".", 2)
    return f"blk.{number}.{_LAYER[name.removesuffix('.weight')]}.weight"


def build_qwen3(params: Qwen3Params, rope_theta: float = ROPE_THETA) -> nn.Module:
    """The layers that are read; the final norm, which no state of theirs passes, is left out."""
    config = Qwen3Config(
        vocab_size=params.vocab_size,
        hidden_size=params.hidden_size,
        intermediate_size=params.mlp_hidden,
        num_hidden_layers=params.num_layers,
        num_attention_heads=params.num_heads,
        num_key_value_heads=params.num_kv_heads,
        head_dim=params.head_dim,
        rms_norm_eps=NORM_EPS,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        use_cache=False,
    )
    model = Qwen3Model(config)
    model.norm = nn.Identity()
    return model


class Qwen3States:
    """The encoder at work. layers: whose output is taken, counted from 1.

    padding_position: where all padding stands; None: each behind the one before.
    """

    def __init__(self, model: Qwen3Model, layers: tuple[int, ...], padding_position: int | None = None) -> None:
        self.model = model
        self._layers = layers
        self._padding_position = padding_position
        self._taken: dict[int, Tensor] = {}
        some = model.layers[0].input_layernorm.weight
        self._device, self._dtype = some.device, some.dtype
        model.rotary_emb = Qwen3RotaryEmbedding(model.config).to(self._device)  # its frequencies are in no file
        self._cancellation = CancellationPoint(model.layers)
        for number in layers:
            model.layers[number - 1].register_forward_hook(partial(self._take, number))

    def __call__(self, ids: list[int], mask: list[int], cancellation: Callable[[], None]) -> Tensor:
        """ids, mask: T tokens; mask is 0 at padding. Returns (T, layers * hidden), the layers side by side."""
        embedded = self.model.embed_tokens(torch.tensor([ids])).to(self._device, self._dtype)
        attended = torch.tensor([mask], device=self._device)
        positions = torch.arange(len(ids), device=self._device)[None]
        if self._padding_position is not None:
            positions = positions.masked_fill(attended == 0, self._padding_position)
        with self._cancellation.calling(cancellation):
            self.model(inputs_embeds=embedded, attention_mask=attended, position_ids=positions, use_cache=False)
        return torch.cat([self._taken.pop(number)[0] for number in self._layers], dim=-1)

    def _take(self, number: int, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self._taken[number] = output


def stored_qwen3(params: Qwen3Params, file_layers: int) -> SyntheticNetwork:
    """One of random weights, in no file yet, with the layers and the norm that are not read."""
    stored = replace(params, num_layers=file_layers)
    shapes = {**qwen3_shapes(stored), "norm.weight": (stored.hidden_size,)}
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": stored.head_dim,
        "hidden_act": "silu",
        "hidden_size": stored.hidden_size,
        "intermediate_size": stored.mlp_hidden,
        "num_attention_heads": stored.num_heads,
        "num_hidden_layers": stored.num_layers,
        "num_key_value_heads": stored.num_kv_heads,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": int(ROPE_THETA),
        "tie_word_embeddings": True,
        "vocab_size": stored.vocab_size,
    }
    return SyntheticNetwork("qwen3", "", "", shapes, as_named(shapes), config, stored.hidden_size, _embedding_scale)


def _embedding_scale(name: str, _shape: tuple[int, ...]) -> float | None:
    return EMBEDDING_SCALE if name == EMBEDDING else None
