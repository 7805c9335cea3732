"""What lives where at a memory budget, in integers. Knows no tensors, no devices and no files.

Sizes are bytes throughout. The device holds the small weights, as many of the denoiser's blocks as the budget
allows, and two slots through which the others stream once a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from fluxserve.errors import DeviceError

GIB = 2**30
SLOTS = 2

CONTEXT_BYTES = {"cuda": GIB // 2, "mps": GIB // 4, "cpu": 3 * GIB // 4}
"""What the libraries themselves take before the first weight: on a CPU, the process after its imports."""

DECODER_LIVE_MAPS = 6
"""Feature maps that live at once in the decoder's last level, at full size and twice its channels."""
TILE_SIDE = 512
"""Pixels a side of a tile when the autoencoder does not fit whole."""


@dataclass(frozen=True)
class ModelBytes:
    """A model's weights by how they are used, in bytes as stored on the device.

    blocks: each of the denoiser's, in order, without what stays on the host. small: what the denoiser needs beside
    them, LoRAs too. encoder_blocks: those of the text encoders that have blocks. whole: all other networks and parts.
    host: what is used on the host alone: modulation and embedding tables.
    """

    blocks: tuple[int, ...]
    small: int
    encoder_blocks: tuple[int, ...]
    whole: int
    host: int

    @property
    def total(self) -> int:
        return sum(self.blocks) + self.small + sum(self.encoder_blocks) + self.whole + self.host


@dataclass(frozen=True)
class Work:
    """What a request of a certain size needs beside weights. width, height: pixels the model draws.

    reference_tokens: of what it is drawn by. token_area: pixels of an image token. decoder_channels: of the
    autoencoder's widest full-size map. extra_bytes: what 8-bit products and the step cache take a token beside the
    activations.
    """

    width: int
    height: int
    batch: int
    text_tokens: int
    hidden: int
    mlp_hidden: int
    token_area: int
    decoder_channels: int
    itemsize: int
    extra_bytes: int = 0
    reference_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.text_tokens + self.width * self.height // self.token_area + self.reference_tokens

    @property
    def step_bytes(self) -> int:
        """Activations of one step: the widest moment of a block, per token."""
        token = (8 * self.hidden + 5 * self.mlp_hidden) * self.itemsize + self.extra_bytes
        return self.batch * self.tokens * token

    def decode_bytes(self, tiled: bool) -> int:
        """Feature maps of the decoder, whole or of one tile; images are decoded one by one."""
        sides = (self.width, self.height)
        area = prod(min(side, TILE_SIDE) for side in sides) if tiled else prod(sides)
        return area * self.decoder_channels * DECODER_LIVE_MAPS * self.itemsize


@dataclass(frozen=True)
class Plan:
    """One placement. resident, streamed: indices of the denoiser's blocks. text_encoder: where its blocks live while
    encoding.

    peak_bytes: the most that the device holds at any time, for `work`. streamed_bytes: moved once a step.
    """

    budget_bytes: int
    work: Work
    resident: tuple[int, ...]
    streamed: tuple[int, ...]
    slot_bytes: int
    text_encoder: Literal["resident", "streamed"]
    tiled: bool
    peak_bytes: int
    streamed_bytes: int

    @property
    def room_bytes(self) -> int:
        """What a request may take beside the weights."""
        needed = max(self.work.step_bytes, self.work.decode_bytes(self.tiled))
        return max(self.budget_bytes - (self.peak_bytes - needed), needed)

    def decodes_whole(self, width: int, height: int) -> bool:
        """Whether the autoencoder's maps of a picture fit beside the weights; else it is decoded in tiles."""
        return replace(self.work, width=width, height=height).decode_bytes(tiled=False) <= self.room_bytes

    def encodes_whole(self, width: int, height: int) -> bool:
        """The same of the encoder, whose widest maps have half the channels."""
        return replace(self.work, width=width, height=height).decode_bytes(tiled=False) // 2 <= self.room_bytes

    def samples_together(self, width: int, height: int, reference_tokens: int = 0) -> int:
        """How many samples of a size fit beside the weights in one step; 1 at least."""
        one = replace(self.work, width=width, height=height, batch=1, reference_tokens=reference_tokens)
        return max(self.room_bytes // one.step_bytes, 1)

    @property
    def max_pixels(self) -> int:
        """The largest picture, in pixels with those that it is drawn by, whose steps fit beside the weights."""
        tokens = self.room_bytes // (self.work.step_bytes // self.work.tokens) - self.work.text_tokens
        return max(tokens * self.work.token_area, self.work.width * self.work.height)


def make_plan(model: ModelBytes, work: Work, budget_bytes: int, device: str) -> Plan:
    """The fastest placement within the budget: all resident if it fits; else the denoiser's blocks before encoders'.

    The autoencoder is only tiled where its maps would take the place of blocks: those are needed every step. Where
    there is no room to draw by pictures of the planned size, there may be for smaller ones.

    Raises:
        DeviceError: even streaming every block does not fit; names the smallest budget that would.
    """
    choices = [_Choice(len(model.blocks), True, False), _Choice(len(model.blocks), False, False)]
    choices += [_Choice(count, False, True) for count in range(len(model.blocks), -1, -1)]
    for planned in (work, replace(work, reference_tokens=0)):
        for choice in choices:
            plan = _plan(model, planned, budget_bytes, device, choice)
            if plan.peak_bytes <= budget_bytes:
                return plan
    raise DeviceError(
        f"a memory budget of {budget_bytes:,} bytes ({budget_bytes / GIB:.2f} GiB) is too small for "
        f"{work.width}x{work.height}: the smallest that can work is {plan.peak_bytes:,} bytes "
        f"({plan.peak_bytes / GIB:.2f} GiB)"
    )


def resident_plan(model: ModelBytes, work: Work, budget_bytes: int, device: str) -> Plan:
    """Everything on the device, whatever the budget says."""
    return _plan(model, work, budget_bytes, device, _Choice(len(model.blocks), True, False))


def streaming_plan(model: ModelBytes, work: Work, budget_bytes: int, device: str) -> Plan:
    """As little as possible on the device, whatever the budget says."""
    return _plan(model, work, budget_bytes, device, _Choice(0, False, True))


@dataclass(frozen=True)
class _Choice:
    resident_blocks: int
    encoder_resident: bool
    tiled: bool


def _plan(model: ModelBytes, work: Work, budget_bytes: int, device: str, choice: _Choice) -> Plan:
    resident = spread(len(model.blocks), choice.resident_blocks)
    streamed = tuple(sorted(set(range(len(model.blocks))) - set(resident)))
    slot = _slot_bytes(model, streamed, choice.encoder_resident)
    always = CONTEXT_BYTES[device] + model.small + model.whole + SLOTS * slot
    always += sum(model.blocks[i] for i in resident)
    always += sum(model.encoder_blocks) if choice.encoder_resident else 0
    peak = always + max(work.step_bytes, work.decode_bytes(choice.tiled))
    return Plan(
        budget_bytes=budget_bytes,
        work=work,
        resident=resident,
        streamed=streamed,
        slot_bytes=slot,
        text_encoder="resident" if choice.encoder_resident else "streamed",
        tiled=choice.tiled,
        peak_bytes=peak,
        streamed_bytes=sum(model.blocks[i] for i in streamed),
    )


def _slot_bytes(model: ModelBytes, streamed: Sequence[int], encoder_resident: bool) -> int:
    """The largest block that passes through a slot; 0 when none does."""
    sizes = [model.blocks[i] for i in streamed]
    sizes += [] if encoder_resident else list(model.encoder_blocks)
    return max(sizes, default=0)


def spread(total: int, chosen: int) -> tuple[int, ...]:
    """`chosen` of range(total), evenly over it, leaving an even number out: so that copies hide behind all of the
    compute, and the ring of two slots closes."""
    if (total - chosen) % SLOTS and chosen > 0:
        chosen -= 1
    return tuple(i * total // chosen for i in range(chosen)) if chosen else ()
