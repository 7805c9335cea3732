"""Which names mean which of the served models."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fluxserve.config import ServerConfig
from fluxserve.engine import Engine
from fluxserve.errors import InvalidRequest

OPENAI_GPT_IMAGE = re.compile(r"(gpt-image|chatgpt-image)")
OPENAI_DALL_E = re.compile(r"dall-e-")
_DALL_E = ("dall-e-2", "dall-e-3")


def model_id(model: Engine) -> str:
    """What it is listed as: its own id, or what it was configured as while that is not known."""
    return model.card.id if model.card else model.config.label


def listed_names(models: Sequence[Engine]) -> dict[str, Engine]:
    """Every id and every name that the operator gives, each once; one id of two models is the first's."""
    names: dict[str, Engine] = {}
    for model in models:
        for name in (model_id(model), *model.config.hosting.served_model_names):
            names.setdefault(name, model)
    return names


def model_aliases(model: Engine, models: Sequence[Engine], config: ServerConfig) -> tuple[str, ...]:
    """Every name beside its id that means the model, OpenAI's open-ended ones aside. Those of none are the first's."""
    own, known = model_id(model), _names(models, config)
    return tuple(name for name, named in known.items() if named is model and name != own)


def find_model(name: str | None, models: Sequence[Engine], config: ServerConfig) -> Engine:
    """The model of this name; the first for none, and for OpenAI's.

    Raises:
        InvalidRequest: `model_not_found` for any other name.
    """
    if name is None or (found := _names(models, config).get(name)) is None:
        if name is None or (OPENAI_GPT_IMAGE.match(name) and not config.strict_model):
            return models[0]
        raise InvalidRequest(
            f"the model {name[:64]!r} is not served here; this server has {_told(models)}",
            param="model",
            code="model_not_found",
        )
    return found


def _names(models: Sequence[Engine], config: ServerConfig) -> dict[str, Engine]:
    """What is said goes before what is derived, and earlier models before later ones."""
    names = listed_names(models) | {"default": models[0]}
    for model in models:
        card = model.card
        derived = (*card.aliases, card.id.rsplit("/", 1)[-1]) if card else ()
        for name in (*derived, model.config.label):
            names.setdefault(name, model)
    if not config.strict_model:
        for name in _DALL_E:
            names.setdefault(name, models[0])
    return names


def _told(models: Sequence[Engine]) -> str:
    first, *others = (repr(model_id(model)) for model in models)
    return ", ".join([f"{first}, also called 'default'", *others[:15]])
