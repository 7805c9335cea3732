"""Which names mean the served model."""

from __future__ import annotations

import re

from fluxserve.config import ServerConfig
from fluxserve.errors import InvalidRequest
from fluxserve.request import ModelCard

OPENAI_GPT_IMAGE = re.compile(r"(gpt-image|chatgpt-image)")
OPENAI_DALL_E = re.compile(r"dall-e-")
_DALL_E = ("dall-e-2", "dall-e-3")


def model_aliases(card: ModelCard, config: ServerConfig) -> tuple[str, ...]:
    """Every name beside the card's id that means the model, OpenAI's open-ended ones aside."""
    names = ["default", *card.aliases, card.id.rsplit("/", 1)[-1], *config.served_model_names]
    if not config.strict_model:
        names += _DALL_E
    return tuple(dict.fromkeys(name for name in names if name != card.id))


def check_model_name(name: str | None, card: ModelCard, config: ServerConfig) -> None:
    """Accepts the model's id and aliases, and none at all.

    Raises:
        InvalidRequest: `model_not_found` for any other name.
    """
    if name is None or name == card.id or name in model_aliases(card, config):
        return
    if OPENAI_GPT_IMAGE.match(name) and not config.strict_model:
        return
    raise InvalidRequest(
        f"the model {name[:64]!r} is not served here; this server has {card.id!r}, also called 'default'",
        param="model",
        code="model_not_found",
    )
