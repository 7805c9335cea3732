"""A convolutional autoencoder's two halves: pictures to the moments of latents an eighth of their size, and back.

Follows black-forest-labs/flux `src/flux/modules/autoencoder.py` (parameter names equal the published ae.safetensors).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-6


@dataclass(frozen=True)
class AutoencoderParams:
    """Sizes of one autoencoder. num_groups: groups of every GroupNorm."""

    in_channels: int
    ch: int
    ch_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    num_groups: int


def conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1)


class AttnBlock(nn.Module):
    """Self-attention with one head over all pixels of a map."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.q = nn.Conv2d(channels, channels, kernel_size=1)
        self.k = nn.Conv2d(channels, channels, kernel_size=1)
        self.v = nn.Conv2d(channels, channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, h, w). Returns the same shape."""
        normed = self.norm(x)
        q, k, v = (
            layer(normed).flatten(2).transpose(1, 2).unsqueeze(1) for layer in (self.q, self.k, self.v)
        )  # each (B, 1, h * w, channels)
        out = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        return x + self.proj_out(out.transpose(1, 2).reshape(x.shape))


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=NORM_EPS)
        self.conv1 = conv3(in_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=NORM_EPS)
        self.conv2 = conv3(out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, kernel_size=3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Halves h and w, padding one pixel at the right and the bottom."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class DownLevel(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, params: AutoencoderParams, last: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * params.num_res_blocks
        self.block = nn.ModuleList(ResnetBlock(a, b, params.num_groups) for a, b in pairwise(widths))
        if not last:
            self.downsample = Downsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.downsample(x) if hasattr(self, "downsample") else x


class UpLevel(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, params: AutoencoderParams, last: bool) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * (params.num_res_blocks + 1)
        self.block = nn.ModuleList(ResnetBlock(a, b, params.num_groups) for a, b in pairwise(widths))
        if not last:
            self.upsample = Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.upsample(x) if hasattr(self, "upsample") else x


class Encoder(nn.Module):
    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        widths = [params.ch] + [params.ch * mult for mult in params.ch_mult]
        levels = len(params.ch_mult)
        self.conv_in = conv3(params.in_channels, params.ch)
        self.down = nn.ModuleList(
            DownLevel(widths[i], widths[i + 1], params, last=i == levels - 1) for i in range(levels)
        )
        self.mid = Middle(widths[-1], params.num_groups)
        self.norm_out = nn.GroupNorm(params.num_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = conv3(widths[-1], 2 * params.z_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, height, width). Returns (B, 2 * C, h, w): mean and log-variance."""
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, params: AutoencoderParams) -> None:
        super().__init__()
        widths = [params.ch * mult for mult in params.ch_mult]
        inputs = [*widths[1:], widths[-1]]  # level i takes what level i + 1 gives
        self.conv_in = conv3(params.z_channels, widths[-1])
        self.mid = Middle(widths[-1], params.num_groups)
        self.up = nn.ModuleList(UpLevel(inputs[i], widths[i], params, last=i == 0) for i in range(len(widths)))
        self.norm_out = nn.GroupNorm(params.num_groups, widths[0], eps=NORM_EPS)
        self.conv_out = conv3(widths[0], params.in_channels)

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, C, h, w). Returns (B, 3, height, width)."""
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))
