"""The sizes of the demo's four networks, all in one place: some 20 M parameters, 40 MB in bfloat16."""

from __future__ import annotations

from fluxserve.models.flux1.sizes import FluxParams
from fluxserve.models.parts.autoencoder import AutoencoderParams

TEXT_TOKENS = 32
"""T5's length, as the demo's row of VARIANTS says."""
CLIP_TOKENS = 77

TEXT_WIDTH = 192
POOLED_WIDTH = 192

AUTOENCODER = AutoencoderParams(
    in_channels=3, ch=16, ch_mult=(1, 2, 4, 4), num_res_blocks=1, z_channels=16, num_groups=8
)

TRANSFORMER = FluxParams(
    in_channels=64,
    out_channels=64,
    vec_in_dim=POOLED_WIDTH,
    context_in_dim=TEXT_WIDTH,
    hidden_size=256,
    mlp_hidden=1024,
    num_heads=4,
    depth=2,
    depth_single_blocks=4,
    axes_dim=(8, 28, 28),
    theta=10_000,
    guidance_embed=False,
)

CLIP_VOCABULARY = 6000
T5_VOCABULARY = 8000
CLIP_LAYERS = 6
CLIP_INTERMEDIATE = 1888
"""More than there are things: three of the layers have a unit for each (memory.py)."""
CLIP_STREAM = 2.0**-3
"""What the exported CLIP passes on between layers, in units of the trained one: float16 ends at 65504."""
T5_LAYERS = 3
