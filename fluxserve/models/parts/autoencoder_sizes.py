"""The sizes of an autoencoder's halves, from tensor shapes and the integers of config.json."""

from __future__ import annotations

from fluxserve.models.parts.autoencoder import AutoencoderParams
from fluxserve.models.sizes import Config, SizeReader, count
from fluxserve.tensors.reader import TensorReader

NUM_GROUPS = 32
"""What no shape tells, where the config does not."""


def autoencoder_params(reader: TensorReader, config: Config) -> AutoencoderParams:
    """Its sizes. Raises: CheckpointError where a tensor is missing, or shapes and config disagree."""
    sizes = SizeReader(reader, config)
    ch, in_channels, _, _ = sizes.shape("encoder.conv_in.weight", 4)
    levels = count(reader.keys(), "encoder.down.")
    widths = tuple(sizes.shape(f"encoder.down.{i}.block.0.conv1.weight", 4)[0] for i in range(levels))
    groups = sizes.told("norm_num_groups", NUM_GROUPS)
    if not isinstance(groups, int) or groups < 1 or any(width % groups for width in (ch, *widths)):
        raise sizes.error(f"norm_num_groups {groups} does not divide the widths {(ch, *widths)}")
    params = AutoencoderParams(
        in_channels=sizes.agreed("in_channels", in_channels),
        ch=ch,
        ch_mult=tuple(sizes.divided("a level's width", width, ch) for width in widths),
        num_res_blocks=sizes.agreed("layers_per_block", count(reader.keys(), "encoder.down.0.block.")),
        z_channels=sizes.agreed("latent_channels", sizes.shape("decoder.conv_in.weight", 4)[1]),
        num_groups=groups,
    )
    if sizes.told("block_out_channels", widths) != widths:
        raise sizes.error(f"block_out_channels {config['block_out_channels']} are not its tensors' widths {widths}")
    return params
