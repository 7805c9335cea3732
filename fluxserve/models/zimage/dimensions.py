"""The sizes of Z-Image's transformer, from tensor shapes and the integers of config.json."""

from __future__ import annotations

from fluxserve.models.sizes import Config, SizeReader, count
from fluxserve.models.zimage.sizes import Z_IMAGE, ZImageParams
from fluxserve.tensors.reader import TensorReader


def transformer_params(reader: TensorReader, config: Config) -> ZImageParams:
    """Raises: CheckpointError where a tensor is missing, or shapes and config disagree."""
    sizes = SizeReader(reader, config)
    hidden, in_channels = sizes.shape("x_embedder.weight", 2)
    (head_dim,) = sizes.shape("layers.0.attention.q_norm.weight", 1)
    time_hidden, _ = sizes.shape("t_embedder.mlp.0.weight", 2)
    return ZImageParams(
        in_channels=in_channels,
        context_in_dim=sizes.agreed("cap_feat_dim", sizes.shape("cap_embedder.1.weight", 2)[1]),
        hidden_size=sizes.agreed("dim", hidden),
        mlp_hidden=sizes.shape("layers.0.feed_forward.w1.weight", 2)[0],
        num_heads=sizes.agreed("n_heads", sizes.divided("the hidden width", hidden, head_dim)),
        depth=sizes.agreed("n_layers", count(reader.keys(), "layers.")),
        refiner_depth=sizes.agreed("n_refiner_layers", count(reader.keys(), "noise_refiner.")),
        time_hidden=time_hidden,
        time_width=sizes.shape("t_embedder.mlp.2.weight", 2)[0],
        axes_dim=sizes.rotary_axes(3, head_dim, Z_IMAGE.axes_dim, named="axes_dims"),
    )
