"""A model family of its own, small enough to read at once: all that the seam asks for, and nothing else.

One text encoder that reads bytes, no pooled vector, no tokenizer, modulation shared by all blocks, names of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fluxserve.models.family import Arithmetic, BlockLayout, Part, PromptStates, StepInputs
from fluxserve.models.lora_target import LoraTarget, linears
from fluxserve.models.parts.latents import PackedLatents
from fluxserve.models.synthetic import SyntheticModel, SyntheticNetwork
from fluxserve.models.variant import Variant
from fluxserve.tensors.reader import Recipe, TensorReader, renamed

WIDTH, DEPTH, TOKEN = 32, 5, 16  # hidden width, blocks, values of an image token


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, rows: Tensor | float = 0.0) -> Tensor:
        return x + torch.tanh(self.mix(x * (1 + rows)))


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.clock, self.enter, self.leave = nn.Linear(1, WIDTH), nn.Linear(TOKEN, WIDTH), nn.Linear(WIDTH, TOKEN)
        self.read = nn.Linear(WIDTH, WIDTH)
        self.floors = nn.ModuleList(Block() for _ in range(DEPTH))

    def forward(self, inputs: StepInputs) -> Tensor:
        text = self.read(inputs.text).mean(1, keepdim=True)
        x = self.enter(inputs.latents) + text + inputs.positions.to(text.dtype)
        for block in self.floors:
            x = block(x, inputs.rows[:, None])
        return self.leave(x)


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(256, WIDTH)
        self.cells = nn.ModuleList(Block() for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        return self.cells[1](self.cells[0](self.letters(ids).to(self.cells[0].mix.bias.dtype)))


class Squares(nn.Module):
    """An autoencoder of 8 x 8 squares."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 8, stride=8), nn.ConvTranspose2d(4, 3, 8, stride=8)
        self.encode, self.decode, self.stages = self.down.forward, self.up.forward, [self.up]


def _own_names(reader: TensorReader) -> TensorReader:
    return renamed(reader, {key.removeprefix("toy/"): key for key in reader.keys()})


_FLOORS = BlockLayout(("floors.",), on_host=lambda key: key.startswith("clock."))
_CELLS = BlockLayout(("cells.",), tables={"letters.weight": ()})
DENOISER = Part(
    "denoiser", "toy denoiser", "denoiser", "transformer", ("toy/clock.weight",), _own_names, "toy.d.", layout=_FLOORS
)
READER = Part(
    "reader", "toy reader", "text_encoder", "text_encoder", ("toy/letters.weight",), _own_names, "toy.r.", layout=_CELLS
)
SQUARES = Part("squares", "toy autoencoder", "autoencoder", "vae", ("toy/down.weight",), _own_names, "toy.s.")
NETWORKS = {"denoiser": Denoiser, "squares": Squares, "reader": Reader}


class ToyModel:
    def __init__(self, networks) -> None:
        self.denoiser, self.autoencoder = networks["denoiser"], networks["squares"]
        self.text_encoders = {"reader": networks["reader"]}
        self.velocity = self.denoiser.forward

    def encode(self, prompt, max_length, cancellation, pictures) -> PromptStates:
        cancellation()
        letters = list(prompt.encode()) or [0]
        states = self.text_encoders["reader"](torch.tensor(letters[:max_length]))
        return PromptStates(states, None, len(states), len(letters))

    def rows(self, times, guidance, text) -> Tensor:
        return self.denoiser.clock(times[:, None].to(text.states.dtype))

    def positions(self, text_tokens, grids) -> Tensor:
        return torch.sin(torch.arange(grids[0][0] * grids[0][1] // 4)[:, None] / torch.arange(1, WIDTH + 1))


class ToyArchitecture:
    latents, control, sight = PackedLatents(4), None, None
    arithmetic = Arithmetic(WIDTH, WIDTH, 1, WIDTH, DEPTH, DEPTH * WIDTH**2, DEPTH * WIDTH**2, 4)

    def shapes(self):
        built = self.build({})
        return {name: {key: tuple(t.shape) for key, t in built[name].state_dict().items()} for name in built}

    def misfits(self):
        return ()

    def lora_targets(self):
        own = linears(self.shapes()["denoiser"])
        return {name: LoraTarget("denoiser", name, 0, rows, columns) for name, (rows, columns) in own.items()}

    def build(self, tokenizers):
        return {name: network() for name, network in NETWORKS.items()}

    def model(self, networks, tokenizers, dtype) -> ToyModel:
        return ToyModel(networks)


class ToyFamily:
    title, parts, tokenizers, pipelines, sizes = "Toy", (DENOISER, SQUARES, READER), {}, ("ToyPipeline",), ("tiny",)

    def variant(self, denoiser, told) -> Variant:
        return VARIANTS["toy"]

    def architecture(self, components) -> ToyArchitecture:
        return ToyArchitecture()

    def synthetic(self, size, variant, layout, packing) -> SyntheticModel:
        networks = []
        for part in self.parts:
            shapes = ToyArchitecture().shapes()[part.name]
            recipes = {key: Recipe((f"toy/{key}",)) for key in shapes}
            networks.append(SyntheticNetwork(part.name, part.folder, "model.safetensors", shapes, recipes, {}, WIDTH))
        return SyntheticModel(tuple(networks), {}, {"model_index.json": {"_class_name": "ToyPipeline"}})


def _schedule(steps: int, tokens: int) -> tuple[float, ...]:
    return tuple(1 - i / steps for i in range(steps + 1))


TOY = ToyFamily()
STEPS = dict.fromkeys(("low", "medium", "high", "xhigh", "max"), 4)
VARIANTS = {
    "toy": Variant(
        "toy", ("plaything",), _schedule, 24, STEPS, None, 1.0, 64 * 64, False, (64, 64), "Apache-2.0", "Draws squares."
    )
}
