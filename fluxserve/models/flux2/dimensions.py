"""The sizes of FLUX.2's transformer, from tensor shapes and the integers of config.json."""

from __future__ import annotations

from fluxserve.models.flux2.sizes import KLEIN_4B, Flux2Params
from fluxserve.models.sizes import Config, SizeReader, count
from fluxserve.tensors.reader import TensorReader


def transformer_params(reader: TensorReader, config: Config) -> Flux2Params:
    """Raises: CheckpointError where a tensor is missing, or shapes and config disagree."""
    sizes = SizeReader(reader, config)
    hidden, in_channels = sizes.shape("img_in.weight", 2)
    head_dim = sizes.agreed("attention_head_dim", sizes.shape("double_blocks.0.img_attn.norm.query_norm.scale", 1)[0])
    return Flux2Params(
        in_channels=sizes.agreed("in_channels", in_channels),
        context_in_dim=sizes.agreed("joint_attention_dim", sizes.shape("txt_in.weight", 2)[1]),
        hidden_size=hidden,
        num_heads=sizes.agreed("num_attention_heads", sizes.divided("the hidden width", hidden, head_dim)),
        depth=sizes.agreed("num_layers", count(reader.keys(), "double_blocks.")),
        depth_single_blocks=sizes.agreed("num_single_layers", count(reader.keys(), "single_blocks.")),
        axes_dim=sizes.rotary_axes(4, head_dim, KLEIN_4B.axes_dim),
        guidance_embed="guidance_in.in_layer.weight" in reader.keys(),
    )
