"""`FluxPipeline.from_pretrained` takes what `PipelineConfig` has, under the same names."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from fluxserve import FluxPipeline
from fluxserve.config import PipelineConfig, takes_fields_of
from fluxserve.errors import ConfigError

OPTIONS = {field.name: field.default for field in fields(PipelineConfig)}


class Loaded:
    """What a config was made of."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config

    @classmethod
    @takes_fields_of(PipelineConfig)
    def from_pretrained(cls, config: PipelineConfig) -> Loaded:
        return cls(config)


def test_what_is_given_and_what_is_not_is_as_in_the_config() -> None:
    assert Loaded.from_pretrained().config == PipelineConfig()
    changed = Loaded.from_pretrained("schnell", loras=["a", "b"], offload="stream").config
    assert changed == PipelineConfig("schnell", loras=("a", "b"), offload="stream")


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_of_loading_is_taken_under_its_name(name: str) -> None:
    assert Loaded.from_pretrained(**{name: OPTIONS[name]}).config == PipelineConfig()
    with pytest.raises(ConfigError, match="no model named 'no-such-model'"):
        FluxPipeline.from_pretrained(**{**OPTIONS, "model": "no-such-model"})


def test_another_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(TypeError) as error:
        FluxPipeline.from_pretrained("demo", colour="red", lora=["a"])  # type: ignore[call-arg]
    assert str(error.value) == f"from_pretrained takes no colour, lora; it takes {', '.join(OPTIONS)}"
    with pytest.raises(TypeError, match="positional"):
        FluxPipeline.from_pretrained("demo", "cpu")  # type: ignore[call-arg, arg-type]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "int8"}, "dtype must be one of auto, bfloat16, float16, float32, got 'int8'"),
        ({"offload": "all"}, "offload must be one of auto, none, stream, got 'all'"),
        ({"storage": None}, "storage must be one of native, fp8, int8, got None"),
        ({"verify": True}, "verify must be one of auto, always, off, got True"),
        ({"memory_budget": 0}, "memory_budget must be a number of bytes above 0, got 0"),
        ({"memory_budget": "8GiB"}, "memory_budget must be a number of bytes above 0, got '8GiB'"),
        ({"loras": "style.safetensors"}, "loras must be a sequence"),
    ],
)
def test_a_bad_value_is_refused_with_what_is_allowed(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        FluxPipeline.from_pretrained("demo-untrained", device="cpu", **options)
    assert says in error.value.message
