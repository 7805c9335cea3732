"""The sizes of FLUX.3's transformer, from tensor shapes and the integers of config.json."""

from __future__ import annotations

from fluxserve.models.flux3.names import DISTILLED_MARKER
from fluxserve.models.flux3.sizes import FLUX3_KLEIN, Flux3Params
from fluxserve.models.sizes import Config, SizeReader, count
from fluxserve.tensors.reader import TensorReader


def transformer_params(reader: TensorReader, config: Config) -> Flux3Params:
    """Raises: CheckpointError where a tensor is missing, or shapes and config disagree."""
    sizes = SizeReader(reader, config)
    hidden, in_channels = sizes.shape("emb_in.image.weight", 2)
    head_dim = sizes.agreed("attention_head_dim", sizes.shape("txt_mode_blocks.0.norm.query_norm.scale", 1)[0])
    sizes.agreed("cond_in_channels", in_channels)
    return Flux3Params(
        in_channels=sizes.agreed("in_channels", in_channels),
        context_in_dim=sizes.agreed("joint_attention_dim", sizes.shape("txt_in.weight", 2)[1]),
        hidden_size=hidden,
        num_heads=sizes.agreed("num_attention_heads", sizes.divided("the hidden width", hidden, head_dim)),
        depth=sizes.agreed("num_layers", count(reader.keys(), "txt_mode_blocks.")),
        depth_single_blocks=sizes.agreed("num_single_layers", count(reader.keys(), "single_blocks.")),
        axes_dim=sizes.rotary_axes(4, head_dim, FLUX3_KLEIN.axes_dim),
        flow_map=DISTILLED_MARKER in reader.keys(),
    )
