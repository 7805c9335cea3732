"""The sizes of the four networks, from tensor shapes and the whitelisted integers of config.json. Builds nothing.

What both tell must agree. What neither tells is that of the published FLUX.1 (head width 128, RoPE axes (16, 56, 56)).
"""

from __future__ import annotations

from fluxserve.models.flux1.sizes import FLUX1, ClipParams, FluxParams, T5Params
from fluxserve.models.sizes import Config, SizeReader, count
from fluxserve.tensors.reader import TensorReader

CLIP_HEAD_DIM = 64
T5_MAX_DISTANCE = 128


def transformer_params(reader: TensorReader, config: Config) -> FluxParams:
    """Raises: CheckpointError where a tensor is missing, or shapes and config disagree."""
    sizes = SizeReader(reader, config)
    head_dim = sizes.agreed("attention_head_dim", sizes.shape("double_blocks.0.img_attn.norm.query_norm.scale", 1)[0])
    hidden, in_channels = sizes.shape("img_in.weight", 2)
    heads = sizes.agreed("num_attention_heads", sizes.divided("the hidden width", hidden, head_dim))
    return FluxParams(
        in_channels=sizes.agreed("in_channels", in_channels),
        out_channels=sizes.shape("final_layer.linear.weight", 2)[0],
        vec_in_dim=sizes.agreed("pooled_projection_dim", sizes.shape("vector_in.in_layer.weight", 2)[1]),
        context_in_dim=sizes.agreed("joint_attention_dim", sizes.shape("txt_in.weight", 2)[1]),
        hidden_size=hidden,
        mlp_hidden=sizes.shape("double_blocks.0.img_mlp.0.weight", 2)[0],
        num_heads=heads,
        depth=sizes.agreed("num_layers", count(reader.keys(), "double_blocks.")),
        depth_single_blocks=sizes.agreed("num_single_layers", count(reader.keys(), "single_blocks.")),
        axes_dim=sizes.rotary_axes(3, head_dim, FLUX1.axes_dim),
        theta=FLUX1.theta,
        guidance_embed=takes_guidance(reader),
    )


def takes_guidance(reader: TensorReader) -> bool:
    return "guidance_in.in_layer.weight" in reader.keys()


def t5_params(reader: TensorReader, config: Config) -> T5Params:
    """Raises: as `transformer_params`."""
    sizes = SizeReader(reader, config)
    vocab, d_model = sizes.shape("shared.weight", 2)
    table = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    buckets, heads = sizes.shape(table, 2)
    inner, _ = sizes.shape("encoder.block.0.layer.0.SelfAttention.q.weight", 2)
    distance = sizes.told("relative_attention_max_distance", T5_MAX_DISTANCE)
    if not isinstance(distance, int) or distance < 2:
        raise sizes.error(f"relative_attention_max_distance {distance} must be an integer of at least 2")
    return T5Params(
        vocab_size=sizes.agreed("vocab_size", vocab),
        d_model=sizes.agreed("d_model", d_model),
        d_kv=sizes.agreed("d_kv", sizes.divided("the width of q", inner, heads)),
        d_ff=sizes.agreed("d_ff", sizes.shape("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 2)[0]),
        num_layers=sizes.agreed("num_layers", count(reader.keys(), "encoder.block.")),
        num_heads=sizes.agreed("num_heads", heads),
        relative_attention_num_buckets=sizes.agreed("relative_attention_num_buckets", buckets),
        relative_attention_max_distance=distance,
    )


def clip_params(reader: TensorReader, config: Config) -> ClipParams:
    """Raises: as `transformer_params`."""
    sizes = SizeReader(reader, config)
    vocab, hidden = sizes.shape("embeddings.token_embedding.weight", 2)
    heads = sizes.told("num_attention_heads", max(hidden // CLIP_HEAD_DIM, 1))
    if not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise sizes.error(f"num_attention_heads {heads} does not divide the hidden width {hidden}")
    return ClipParams(
        vocab_size=sizes.agreed("vocab_size", vocab),
        hidden_size=sizes.agreed("hidden_size", hidden),
        intermediate_size=sizes.agreed("intermediate_size", sizes.shape("encoder.layers.0.mlp.fc1.weight", 2)[0]),
        num_hidden_layers=sizes.agreed("num_hidden_layers", count(reader.keys(), "encoder.layers.")),
        num_attention_heads=heads,
        max_position_embeddings=sizes.agreed(
            "max_position_embeddings", sizes.shape("embeddings.position_embedding.weight", 2)[0]
        ),
    )
