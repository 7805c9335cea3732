"""Names and shapes of the two text encoders' tensors, in every spelling files use. Builds no networks."""

from __future__ import annotations

from fluxserve.models.flux1.sizes import ClipParams, T5Params
from fluxserve.tensors.reader import Mapped, Recipe, TensorReader, with_tables

T5_MARKER = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
T5_GGUF_MARKER = "enc.blk.0.attn_rel_b.weight"
CLIP_MARKER = "embeddings.token_embedding.weight"
CLIP_PREFIX = "text_model."

T5_EMBEDDING = "shared.weight"
T5_TIED_EMBEDDING = "encoder.embed_tokens.weight"
"""Files hold the embedding under either name, or twice."""

TABLES = (T5_EMBEDDING, "relative_attention_bias.weight", "_embedding.weight")
"""What the names of embeddings end with."""

T5_IGNORED = frozenset({T5_TIED_EMBEDDING, "logit_scale"})
CLIP_IGNORED = frozenset({"logit_scale", "embeddings.position_ids"})
CLIP_OTHER_HALF = ("vision_model.", "visual_projection.", "text_projection.")
"""What files may hold beside the encoder, the prefixes of CLIP's pictures among them; FLUX uses none of it."""

_T5_GGUF_BLOCK = {
    "attn_q": "layer.0.SelfAttention.q",
    "attn_k": "layer.0.SelfAttention.k",
    "attn_v": "layer.0.SelfAttention.v",
    "attn_o": "layer.0.SelfAttention.o",
    "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias",
    "attn_norm": "layer.0.layer_norm",
    "ffn_gate": "layer.1.DenseReluDense.wi_0",
    "ffn_up": "layer.1.DenseReluDense.wi_1",
    "ffn_down": "layer.1.DenseReluDense.wo",
    "ffn_norm": "layer.1.layer_norm",
}
_T5_GGUF_TOP = {"token_embd": "shared", "enc.output_norm": "encoder.final_layer_norm"}


def canonical_t5(reader: TensorReader) -> Mapped:
    """A T5 encoder under transformers' names, from them (either name of the embedding) or from GGUF's."""
    if T5_GGUF_MARKER in reader.keys():
        return with_tables(reader, {_from_gguf(key): key for key in reader.keys()}, TABLES)
    names = {key: key for key in reader.keys() if key not in T5_IGNORED}
    if T5_EMBEDDING not in names and T5_TIED_EMBEDDING in reader.keys():
        names[T5_EMBEDDING] = T5_TIED_EMBEDDING
    return with_tables(reader, names, TABLES)


def canonical_clip(reader: TensorReader) -> Mapped:
    """A CLIP text encoder under transformers 5's names; files prefix them with `text_model.`."""
    names = {key.removeprefix(CLIP_PREFIX): key for key in reader.keys()}
    unused = {name for name, key in names.items() if name in CLIP_IGNORED or key.startswith(CLIP_OTHER_HALF)}
    return with_tables(reader, {name: key for name, key in names.items() if name not in unused}, TABLES)


def t5_shapes(params: T5Params) -> dict[str, tuple[int, ...]]:
    """Every tensor of the encoder. Follows transformers `T5EncoderModel`, without the tied embedding."""
    inner = params.num_heads * params.d_kv
    shapes: dict[str, tuple[int, ...]] = {T5_EMBEDDING: (params.vocab_size, params.d_model)}
    for block in range(params.num_layers):
        attention = f"encoder.block.{block}.layer.0"
        mlp = f"encoder.block.{block}.layer.1"
        shapes |= {f"{attention}.SelfAttention.{name}.weight": (inner, params.d_model) for name in "qkv"}
        shapes[f"{attention}.SelfAttention.o.weight"] = (params.d_model, inner)
        shapes[f"{attention}.layer_norm.weight"] = (params.d_model,)
        shapes |= {f"{mlp}.DenseReluDense.{name}.weight": (params.d_ff, params.d_model) for name in ("wi_0", "wi_1")}
        shapes[f"{mlp}.DenseReluDense.wo.weight"] = (params.d_model, params.d_ff)
        shapes[f"{mlp}.layer_norm.weight"] = (params.d_model,)
    shapes[T5_MARKER] = (params.relative_attention_num_buckets, params.num_heads)
    shapes["encoder.final_layer_norm.weight"] = (params.d_model,)
    return shapes


def clip_shapes(params: ClipParams) -> dict[str, tuple[int, ...]]:
    """Every tensor of the encoder. Follows transformers 5 `CLIPTextModel`."""
    hidden, mlp = params.hidden_size, params.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        CLIP_MARKER: (params.vocab_size, hidden),
        "embeddings.position_embedding.weight": (params.max_position_embeddings, hidden),
    }
    for layer in range(params.num_hidden_layers):
        prefix = f"encoder.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _affine(f"{prefix}.self_attn.{name}", (hidden, hidden))
        shapes |= _affine(f"{prefix}.mlp.fc1", (mlp, hidden)) | _affine(f"{prefix}.mlp.fc2", (hidden, mlp))
        shapes |= _affine(f"{prefix}.layer_norm1", (hidden,)) | _affine(f"{prefix}.layer_norm2", (hidden,))
    return shapes | _affine("final_layer_norm", (hidden,))


def clip_recipes(params: ClipParams) -> dict[str, Recipe]:
    """Of a CLIP file: each name has the prefix."""
    return {key: Recipe((CLIP_PREFIX + key,)) for key in clip_shapes(params)}


def t5_recipes(params: T5Params) -> dict[str, Recipe]:
    """Of a T5 file: each name is its own."""
    return {key: Recipe((key,)) for key in t5_shapes(params)}


def t5_gguf_recipes(params: T5Params) -> dict[str, Recipe]:
    """Of a T5 GGUF file."""
    layers = {f"{layer}.weight" for layer in _T5_GGUF_TOP}
    layers |= {f"enc.blk.{block}.{name}.weight" for block in range(params.num_layers) for name in _T5_GGUF_BLOCK}
    recipes = {_from_gguf(key): Recipe((key,)) for key in layers}
    return {key: recipes[key] for key in t5_shapes(params)}


def _affine(layer: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}


def _from_gguf(key: str) -> str:
    """transformers' name of a GGUF tensor; an unknown name stays as it is and is refused by the strict check."""
    layer, _, kind = key.rpartition(".")
    if layer in _T5_GGUF_TOP:
        return f"{_T5_GGUF_TOP[layer]}.{kind}"
    head, _, name = layer.rpartition(".")
    block = head.removeprefix("enc.blk.")
    return f"encoder.block.{block}.{_T5_GGUF_BLOCK[name]}.{kind}" if name in _T5_GGUF_BLOCK else key
