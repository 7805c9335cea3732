"""CLIP's upper layers in closed form: three memories, each with a unit for every thing, that turn names into codes.

The feed-forward part of a layer is a memory of keys and values (arXiv 2012.14913): a unit fires where what it reads
has its key, and adds its value. Three in a row:

- recall: fires where the thing is named, and adds a random key of the thing's own.
- second: fires where the thing is named as the other one of two, and adds its part of the code.
- first: fires where its random key is found, and adds its code.

Recall also writes down how the arrangement differs from that of one thing alone, and first says it louder.

Names lie between things where a text is vague, and near one another where things are alike. Random keys do neither:
whichever thing has the greatest share of the keys' sum wins, so the code is that of one thing and not of a blend.

What each writes leaves the directions alone that the next one reads: keys lie where the code tells the first thing,
the second one's name and code where it tells the second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scripts.train_demo import sizes
from scripts.train_demo.codes import COMPONENTS, PAIR_DIVISOR, Codes, arrangement, normalised
from scripts.train_demo.scenes import Scene

NONE = -1
"""In place of a second thing."""
PLAIN = Scene((0,), "single")
"""Its arrangement is told with the thing; what differs from it, apart."""
GAIN = 40.0
"""A unit gets GAIN * (cosine - threshold) of what it reads and its key."""
NAMED, SECOND, RECALLED = 0.45, 0.45, 0.575
"""The thresholds of the three."""
PAIR_BONUS = 0.11
"""How much lower the first of two things has its threshold: its key must show beside the second's code."""
KEY_SIZE = 6.0
"""Of a key, for an input of 1, in units of the middle's deviation."""
CODE_SIZE = 240.0
"""Of a code's numbers, in the same units."""
PAIR_SIZE = 0.27
"""Of a code's numbers for two things, in units of those for one."""


@dataclass(frozen=True)
class Texts:
    """The middle at the end token, (B, POOLED_WIDTH), the first thing of each, (B,), and the second, (B,), or NONE.

    arrangements: (B, ARRANGEMENT), without that of one thing alone.
    """

    middle: Tensor
    first: Tensor
    second: Tensor
    arrangements: Tensor


@torch.no_grad()
def build(upper: Any, meaning: Any, codes: Codes, labels: Texts, captions: Texts) -> None:
    """Writes the three layers `upper`. meaning: clip.Meaning, what reads the layers below."""
    for layer in upper:
        _silence(layer)
    unit, keys = labels.middle.std(), random_keys(codes)
    _recall(upper[0], meaning, codes, keys, labels, captions, unit)
    recalled = [replace(texts, middle=after(upper[0], texts.middle)) for texts in (labels, captions)]
    _second(upper[1], meaning, codes, captions, recalled[1], CODE_SIZE * unit)
    told = [replace(texts, middle=after(upper[1], texts.middle)) for texts in recalled]
    _first(upper[2], codes, keys, *told, CODE_SIZE * unit)


def random_keys(codes: Codes) -> Tensor:
    """(N, POOLED_WIDTH) of unit length and zero mean, in the directions of the first thing."""
    directions = codes.rotation[: COMPONENTS // 2]
    leaning = F.normalize(directions.sum(-1), dim=0)
    random = torch.randn(len(codes.things), len(directions), generator=torch.Generator().manual_seed(10))
    return F.normalize((random - (random @ leaning)[:, None] * leaning) @ directions, dim=-1)


def after(layer: Any, states: Tensor) -> Tensor:
    """What a layer with silent attention makes of single states."""
    return states + layer.mlp(layer.layer_norm2(states))  # type: ignore[no-any-return]


def _silence(layer: Any) -> None:
    """Makes it the identity, with a plain norm before its feed-forward part."""
    for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
        linear.weight.zero_()
        linear.bias.zero_()
    layer.layer_norm2.reset_parameters()


def _write(layer: Any, units: slice, reading: Tensor, bias: Tensor, values: Tensor) -> None:
    """Units that read (U, POOLED_WIDTH) with biases (U,) and add values (U, POOLED_WIDTH)."""
    layer.mlp.fc1.weight[units], layer.mlp.fc1.bias[units] = reading, bias
    layer.mlp.fc2.weight[:, units] = values.T


def _pass_on(layer: Any, start: int, reading: Tensor, bias: Tensor, values: Tensor) -> None:
    """From unit `start` on: a linear map, since gelu(z) - gelu(-z) = z for CLIP's quick gelu."""
    for sign in (1, -1):
        units = slice(start, start + len(reading))
        _write(layer, units, sign * reading, sign * bias, sign * values)
        start += len(reading)


def _strength(layer: Any, states: Tensor, units: Tensor) -> Tensor:
    """How much, on average, the unit named for each state fires."""
    fired = layer.mlp.activation_fn(layer.mlp.fc1(layer.layer_norm2(states)))
    return fired.gather(1, units[:, None]).mean()


def _fitted(numbers: Tensor, wanted: Tensor) -> Tensor:
    """The linear map with a constant, (K + 1,), from (B, K) to about (B,)."""
    padded = F.pad(numbers, (0, 1), value=1.0)
    squares = padded.T @ padded + 1e-3 * len(padded) * torch.eye(padded.shape[1])
    return torch.linalg.solve(squares, padded.T @ wanted)


def _recall(layer: Any, meaning: Any, codes: Codes, keys: Tensor, labels: Texts, captions: Texts, unit: Tensor) -> None:
    """The more is told, the shorter the name: the threshold follows its length."""
    layer.layer_norm2.load_state_dict(meaning.norm.state_dict())
    own, name, told = F.normalize(meaning.concepts, dim=-1), meaning.name, meaning.arrangement
    normed = meaning.norm(torch.cat([labels.middle, captions.middle]))
    lengths = name(normed).norm(dim=-1)
    usual = lengths[: len(own)].mean()
    two = torch.cat([labels.second, captions.second]) >= 0
    falls = _fitted(told(normed), NAMED * lengths / usual - PAIR_BONUS * two)
    things = len(own)
    reading = GAIN * (own @ name.weight / usual - falls[:-1] @ told.weight)
    bias = GAIN * (own @ name.bias / usual - falls[:-1] @ told.bias - falls[-1])
    _write(layer, slice(things), reading, bias, KEY_SIZE * unit * keys)
    values = KEY_SIZE * unit * codes.rotation[COMPONENTS:]
    _pass_on(layer, things, told.weight, told.bias - arrangement(PLAIN), values)


def _second(layer: Any, meaning: Any, codes: Codes, before: Texts, captions: Texts, size: Tensor) -> None:
    """Of one thing alone it is silent: there the name is that of nothing."""
    own, name = F.normalize(meaning.concepts, dim=-1), meaning.second
    own = own - F.normalize(meaning.nothing, dim=-1) / 2
    two = before.second >= 0
    reading = name.weight @ meaning.directions
    was, now = normalised(before.middle[two]) @ reading.T, normalised(captions.middle[two]) @ reading.T
    shrunk = (was * now).sum() / was.square().sum()
    scale = GAIN / (was + name.bias).norm(dim=-1).mean()
    values = codes.things[:, : COMPONENTS // 2] @ meaning.directions / PAIR_DIVISOR
    units = slice(len(own))
    _write(layer, units, scale * own @ reading / shrunk, scale * own @ name.bias - GAIN * SECOND, 0 * values)
    fired = _strength(layer, captions.middle[two], captions.second[two])
    layer.mlp.fc2.weight[:, units] = (PAIR_SIZE * size / fired * values).T


def _first(layer: Any, codes: Codes, keys: Tensor, labels: Texts, captions: Texts, size: Tensor) -> None:
    """Its codes are so large that the keys do not count beside them.

    The threshold follows the share that is left for them, and lets of two things the first be told as the second is.
    """
    normed = normalised(torch.cat([labels.middle, captions.middle]))
    reading, telling = keys / sizes.POOLED_WIDTH**0.5, codes.rotation[COMPONENTS:]
    shares = (normed * reading[torch.cat([labels.first, captions.first])]).sum(-1)
    usual = shares[: len(keys)].mean()
    two = torch.cat([labels.second, captions.second]) >= 0
    thresholds = torch.where(two, shares - PAIR_SIZE * (1 - RECALLED) * usual, RECALLED * shares)
    falls = _fitted(normed @ telling.T, thresholds)
    things = len(keys)
    _write(layer, slice(things), GAIN * (reading - falls[:-1] @ telling), -GAIN * falls[-1], 0 * keys)
    plain = arrangement(PLAIN).expand(things, -1)
    values = size * torch.cat([codes.things, plain], dim=1) @ codes.rotation
    layer.mlp.fc2.weight[:, :things] = (values / _strength(layer, labels.middle, labels.first)).T
    one = captions.second == NONE
    seen, wanted = normalised(captions.middle[one]) @ telling.T, captions.arrangements[one]
    stronger = size * wanted.square().sum() / (seen * wanted).sum()
    _pass_on(layer, things, telling, torch.zeros(len(telling)), stronger * telling)
