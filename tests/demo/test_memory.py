"""The memories in the upper layers of the demo's CLIP: names in, codes out, the strongest name wins."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from scripts.train_demo import codes, memory
from scripts.train_demo.clip import Meaning
from scripts.train_demo.scenes import Scene

THINGS, PAIRS = 200, 300
CONFIG = CLIPTextConfig(hidden_size=192, intermediate_size=THINGS + 2 * codes.ARRANGEMENT, num_attention_heads=6)


class World:
    """Things with codes; a middle in which names and arrangements can be read; the layers that were built on it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        pictures = torch.randn(1000, 300) * torch.linspace(1, 0.1, 300) @ torch.randn(300, 16 * 64)
        fitted = codes.fit(pictures.view(1000, 16, 8, 8))
        self.codes = codes.Codes(fitted.things[:THINGS], fitted.rotation)
        self.names = F.normalize(torch.randn(THINGS + 1, codes.COMPONENTS // 2), dim=-1)  # the last: of nothing
        self.meaning = self._meaning()
        self.layers = nn.ModuleList(CLIPEncoderLayer(CONFIG) for _ in range(3))
        labels = [Scene((i,), "single") for i in range(THINGS)]
        told = [Scene((i % THINGS, (7 * i + 3) % THINGS), "row") for i in range(PAIRS)]
        told += [Scene((i,), "single", colour="teal") for i in range(THINGS)]
        memory.build(self.layers, self.meaning, self.codes, self._texts(labels), self._texts(told))

    def _meaning(self) -> Meaning:
        spread = torch.randn(384, codes.COMPONENTS // 2) / codes.COMPONENTS**0.5
        named = self.names @ spread.T
        meaning = Meaning(named[:THINGS], self.codes.second)
        rotation = self.codes.rotation
        meaning.load_state_dict(
            meaning.state_dict()
            | {"nothing": named[THINGS:], "name.bias": torch.zeros(384), "second.bias": torch.zeros(384)}
            | {"name.weight": spread @ rotation[: codes.COMPONENTS // 2], "second.weight": spread}
            | {"arrangement.weight": rotation[codes.COMPONENTS :], "arrangement.bias": torch.zeros(codes.ARRANGEMENT)}
        )
        return meaning

    def middle(self, first: Tensor, second: Tensor, arrangements: Tensor) -> Tensor:
        """From names (B, COMPONENTS / 2) twice; read after the norm, the arrangement is about what was put in."""
        return torch.cat([9.0 * first, 9.0 * second, arrangements], dim=-1) @ self.codes.rotation

    def _texts(self, drawn: list[Scene]) -> memory.Texts:
        first, second = torch.tensor([(*scene.concepts, memory.NONE)[:2] for scene in drawn]).T
        told = torch.stack([codes.arrangement(scene) for scene in drawn])
        middle = self.middle(self.names[first], self.names[second], told)
        return memory.Texts(middle, first, second, told - codes.arrangement(memory.PLAIN))

    def told(self, drawn: list[Scene]) -> Tensor:
        """What comes out for scenes of one thing or two, (B, 192)."""
        return self.said(self._texts(drawn).middle)

    @torch.no_grad()
    def said(self, middle: Tensor) -> Tensor:
        """What comes out, (B, 192)."""
        for layer in self.layers:
            middle = memory.after(layer, middle)
        return codes.normalised(middle)

    def nearest(self, said: Tensor) -> list[int]:
        return torch.cdist(said, self.codes.alone()).argmin(-1).tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


ALONE = [Scene((i,), "single") for i in range(THINGS)]


def test_a_name_gives_its_code(world: World) -> None:
    told = world.told(ALONE)
    assert world.nearest(told) == list(range(THINGS))
    assert F.mse_loss(told, world.codes.alone()) < 0.1


def test_between_two_names_the_nearer_one_wins(world: World) -> None:
    """And gives its own code, not a blend."""
    blended = F.normalize(0.62 * world.names[:THINGS] + 0.38 * world.names[:THINGS].roll(1, 0), dim=-1)
    plain = codes.arrangement(memory.PLAIN).expand(THINGS, -1)
    said = world.said(world.middle(blended, world.names[THINGS:].expand(THINGS, -1), plain))
    assert world.nearest(said) == list(range(THINGS))
    assert F.mse_loss(said, world.codes.alone()) < 0.2


def test_of_two_things_both_are_told(world: World) -> None:
    drawn = [Scene((i, 100 + i), "row") for i in range(50)]
    told, wanted = (vectors @ world.codes.rotation.T for vectors in (world.told(drawn), world.codes(drawn)))
    for part in (slice(0, 90), slice(90, 180), slice(180, 192)):
        assert F.cosine_similarity(told[:, part], wanted[:, part]).mean() > 0.5


def test_a_background_is_told_beside_the_thing(world: World) -> None:
    drawn = [Scene((i,), "single", colour="teal") for i in range(THINGS)]
    told, wanted = (vectors @ world.codes.rotation.T for vectors in (world.told(drawn), world.codes(drawn)))
    assert F.mse_loss(told, wanted) < 0.15
    assert F.mse_loss(told[:, codes.COMPONENTS :], wanted[:, codes.COMPONENTS :]) < 0.1
