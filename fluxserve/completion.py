"""The one way from what a caller asks to a complete request, for HTTP, the command line and Python alike.

Fills in the defaults of the model's card and checks every range.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack, get_args

from fluxserve.errors import InvalidRequest
from fluxserve.input_images import EditInputs
from fluxserve.request import (
    LORA_SCALE,
    MAX_LORAS,
    RANGES,
    REDUX_WEIGHT,
    Control,
    GenerationRequest,
    LoraChoice,
    ModelCard,
    OutputFormat,
    Range,
    Reference,
    Solver,
    consecutive_seeds,
)
from fluxserve.sizes import MAX_PIXELS, References, check_size, fit_size, nearest_size

LONGEST_PROMPT = 32_000
EDIT_STRENGTH, MASKED_STRENGTH, VARIATION_STRENGTH = 0.75, 1.0, 0.6

_CONTROLS = {code: None for code in range(1, 32) if chr(code) not in "\t\n"}
_AS_GIVEN = ("partial_images", "output_compression", "metadata")


class RequestOptions(TypedDict, total=False):
    """What a caller may leave out, or give as None: see `GenerationRequest` for what each means and its default.

    n: images, with seeds seed, seed + 1, ...; a random seed is below 2**32. width, height: multiples of 16; by default
    the model's own size, or the input picture's. strength: by default 0.75, 1 with a mask, 0.6 without a prompt;
    nothing to a model that draws by references. control: the map to make of the picture, for models that draw from one;
    by default the picture is the map. redux: the weight of each picture, for models with an image encoder; 1 where they
    vary a picture. loras: by name alone, or with their scales. solver: euler or
    dpmpp2m; by default what the model was loaded with.
    """

    n: int | None
    width: int | None
    height: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    seed: int | None
    max_sequence_length: int | None
    negative_prompt: str | None
    true_cfg_scale: float | None
    strength: float | None
    control: Control | None
    redux: Sequence[float] | None
    loras: Sequence[str | LoraChoice] | None
    solver: Solver | None
    partial_images: int | None
    output_format: OutputFormat | None
    output_compression: int | None
    metadata: bool | None


def complete_request(
    card: ModelCard,
    prompt: str,
    *,
    inputs: EditInputs | None = None,
    max_pixels: int = MAX_PIXELS,
    **options: Unpack[RequestOptions],
) -> GenerationRequest:
    """The request with every default filled in.

    prompt: may be empty where there are inputs. max_pixels: the most of a size that is asked for.

    Raises:
        InvalidRequest: a value is of another type or outside its range; names the parameter.
    """
    check_options(options)
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    prompt = _prompt(prompt, required=inputs is None)
    pictures = _pictures(given, prompt, inputs, card)
    width, height = _size(given, card, inputs, pictures, max_pixels)
    seed = given["seed"] if "seed" in given else secrets.randbelow(2**32)
    return GenerationRequest(
        prompt=prompt,
        width=width,
        height=height,
        seeds=consecutive_seeds(seed, given.get("n", 1)),
        num_inference_steps=given.get("num_inference_steps", card.steps["medium"]),
        guidance_scale=_guidance(given, card),
        max_sequence_length=_at_most(card.max_sequence_length, given, "max_sequence_length"),
        true_cfg_scale=given.get("true_cfg_scale", card.true_cfg_scale),
        negative_prompt=clean_text("negative_prompt", given.get("negative_prompt", "")),
        output_format=_output_format(given.get("output_format", "png")),
        crop=_crop(given, card, inputs, (width, height)),
        solver=_solver(given.get("solver", card.solver)),
        loras=_loras(given.get("loras", ()), card),
        **pictures,
        **{name: given[name] for name in _AS_GIVEN if name in given},
    )


def check_count(images: int, most: int) -> None:
    """Raises InvalidRequest (`too_many_images`) for more than `most` pictures."""
    if images > most:
        wanted = "exactly one image" if most == 1 else f"at most {most} images (--max-input-images)"
        raise InvalidRequest(f"send {wanted}, got {images}", param="image", code="too_many_images")


def edit_area(card: ModelCard) -> int:
    """How many pixels the answer to a picture has at most, where no size is asked."""
    return max(card.native_area, card.default_width * card.default_height)


def check_options(options: RequestOptions) -> None:
    """What can be told without a model's card.

    Raises:
        InvalidRequest: a number is of another type or outside its range.
        TypeError: there is no such option.
    """
    for name, value in options.items():
        if name not in RequestOptions.__annotations__:
            known = ", ".join(RequestOptions.__annotations__)
            raise TypeError(f"{name!r} is not an option of a request, which are {known}")
        if name in RANGES and value is not None:
            check_range(name, value, RANGES[name])


def clean_text(param: str, text: str) -> str:
    """The text without control characters other than tab and newline.

    Raises:
        InvalidRequest: it is no text, is too long, or holds NUL or what is not Unicode.
    """
    if not isinstance(text, str):
        raise InvalidRequest(f"{param} must be text, got {type(text).__name__}", param=param, code="invalid_type")
    if len(text) > LONGEST_PROMPT:
        raise InvalidRequest(
            f"{param} must have at most {LONGEST_PROMPT} characters, got {len(text)}",
            param=param,
            code="string_above_max_length",
        )
    if "\0" in text:
        raise InvalidRequest(f"{param} must not contain NUL characters", param=param)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidRequest(f"{param} must be Unicode, got a lone surrogate", param=param)
    return text.translate(_CONTROLS)


def check_range(param: str, value: object, allowed: Range) -> None:
    """Raises InvalidRequest unless the value is of the range's type and within it; NaN is outside."""
    if not allowed.holds(value):
        raise InvalidRequest(f"{param} must be {allowed}, got {str(value)[:40]}", param=param)


def _prompt(prompt: str, required: bool) -> str:
    cleaned = clean_text("prompt", prompt)
    if required and not cleaned.strip():
        raise InvalidRequest("prompt must not be blank", param="prompt")
    return cleaned


def default_size(
    card: ModelCard, inputs: EditInputs | None = None, max_pixels: int = MAX_PIXELS, redux: bool = False
) -> tuple[int, int]:
    """(width, height) where none is asked for: the model's own, or the input picture's, within both limits."""
    most = min(max_pixels, card.max_pixels or max_pixels)
    if inputs is None:
        own = card.default_width, card.default_height
        return fit_size(*own, own[0] * own[1], most)
    if card.references is not None and not redux:
        return nearest_size(*card.references.of(len(inputs.images)).frame(*inputs.size).size, most)
    return fit_size(*inputs.size, edit_area(card), most)


def _size(
    given: dict[str, Any],
    card: ModelCard,
    inputs: EditInputs | None,
    pictures: Mapping[str, Any],
    max_pixels: int,
) -> tuple[int, int]:
    """pictures: what `_pictures` gave."""
    size = default_size(card, inputs, max_pixels, bool(pictures["redux"]))
    width, height = given.get("width", size[0]), given.get("height", size[1])
    check_size(width, height, max_pixels, card.max_pixels or max_pixels)
    _check_room(width, height, pictures["references"], card)
    return width, height


def _redux_weights(weights: Any, card: ModelCard, inputs: EditInputs | None, prompt: str) -> tuple[float, ...]:
    """Of each picture that the image encoder reads; none where none is to be read so.

    Raises:
        InvalidRequest: `redux`: there is no such encoder, or not a weight for each picture.
    """
    pictures = len(inputs.images) if inputs else 0
    if weights is None:
        varied = inputs is not None and not prompt.strip() and not _has_mask(inputs)
        return (1.0,) * pictures if card.redux and varied else ()
    if card.redux is None:
        raise InvalidRequest(
            "redux needs a model with an image encoder (--redux)", param="redux", code="unsupported_value"
        )
    given = tuple(weights) if isinstance(weights, Sequence) else (weights,)
    for weight in given:
        check_range("redux", weight, REDUX_WEIGHT)
    if len(given) != pictures or not pictures:
        raise InvalidRequest(f"redux must have a weight for each image, got {len(given)} for {pictures}", param="redux")
    if inputs is not None and _has_mask(inputs):
        raise InvalidRequest("mask is not taken with redux", param="mask", code="unsupported_value")
    return given


def _references(inputs: EditInputs | None, card: ModelCard, rule: References | None) -> tuple[Reference, ...]:
    """The pictures as the model reads them, where it does."""
    check_count(len(inputs.images) if inputs else 0, rule.most if rule else 1)
    if inputs is None or rule is None:
        return ()
    own = rule.of(len(inputs.images))
    return tuple(Reference(image.data, *own.frame(image.width, image.height).size) for image in inputs.images)


def _crop(
    given: Mapping[str, Any], card: ModelCard, inputs: EditInputs | None, size: tuple[int, int]
) -> tuple[int, int] | None:
    """What the one picture that is drawn by fills of the size drawn, where that is its own and none was asked for."""
    if inputs is None or card.references is None or given.get("redux") or {"width", "height"} & given.keys():
        return None
    frame = card.references.of(len(inputs.images)).frame(*inputs.size)
    return frame.scaled if frame.reflects and frame.size == size else None


def _check_room(width: int, height: int, references: Sequence[Reference], card: ModelCard) -> None:
    pixels = width * height + sum(reference.width * reference.height for reference in references)
    if references and pixels > (card.max_pixels or pixels):
        raise InvalidRequest(
            f"size and images must have at most {card.max_pixels} pixels in all within the memory budget "
            f"(--memory-budget), got {width}x{height} and "
            f"{', '.join(f'{each.width}x{each.height}' for each in references)}",
            param="size",
            code="invalid_size",
        )


def _pictures(given: dict[str, Any], prompt: str, inputs: EditInputs | None, card: ModelCard) -> dict[str, Any]:
    """All that a request has of its pictures."""
    redux = _redux_weights(given.get("redux"), card, inputs, prompt)
    references = _references(inputs, card, card.redux if redux else card.references)
    drawn_over = {} if redux else _drawn_over(given, prompt, _taken(inputs, card), card)
    return {"references": references, "redux": redux, "control": _control(given, card), **drawn_over}


def _drawn_over(given: dict[str, Any], prompt: str, inputs: EditInputs | None, card: ModelCard) -> dict[str, Any]:
    """image, mask and strength: of a model that draws by references, what a mask keeps of the first."""
    if inputs is not None and card.picture == "start" and not prompt.strip():
        inputs = _varied(inputs)
    if inputs is None or (card.references is not None and inputs.mask is None):
        return {}
    return {
        "image": (inputs.kept or inputs.image).data,
        "mask": inputs.mask.data if inputs.mask else None,
        "strength": _strength(given, prompt, inputs) if card.takes_strength else 1.0,
    }


def _guidance(given: dict[str, Any], card: ModelCard) -> float | None:
    """None for a model that takes none, whatever is asked."""
    if card.guidance_scale is None or "guidance_scale" not in given:
        return card.guidance_scale
    return _at_most(card.guidance_max, given, "guidance_scale")


def _at_most(limit: Any, given: dict[str, Any], param: str) -> Any:
    """What is given, else the limit itself."""
    value = given.get(param, limit)
    if value > limit:
        raise InvalidRequest(f"{param} must be at most {limit:g} for this model, got {value:g}", param=param)
    return value


def _taken(inputs: EditInputs | None, card: ModelCard) -> EditInputs | None:
    """The pictures as the model takes them. Raises: InvalidRequest: it needs one, or a mask, or takes no mask."""
    if card.picture == "start":
        return inputs
    if inputs is None:
        raise InvalidRequest(
            f"image is required: {card.id} draws from a picture; send an edit",
            param="image",
            code="missing_required_parameter",
        )
    if card.picture == "control":
        return _map_alone(inputs)
    if inputs.mask is None:
        raise InvalidRequest(
            f"mask is required: {card.id} repaints what is transparent in it, or in the image itself; send an edit",
            param="mask",
            code="missing_required_parameter",
        )
    return inputs


def _varied(inputs: EditInputs) -> EditInputs:
    """What a variation starts from: a picture's own transparency keeps nothing of it."""
    return replace(inputs, mask=None) if inputs.own_mask else inputs


def _has_mask(inputs: EditInputs) -> bool:
    """Whether one was sent beside the picture."""
    return inputs.mask is not None and not inputs.own_mask


def _map_alone(inputs: EditInputs) -> EditInputs:
    """What is transparent in a map means nothing."""
    if _has_mask(inputs):
        raise InvalidRequest(
            "mask is not taken: the model draws all of a picture, from a map", param="mask", code="unsupported_value"
        )
    return replace(inputs, mask=None)


def _control(given: dict[str, Any], card: ModelCard) -> Control | None:
    control = given.get("control")
    if control is not None and control not in card.controls:
        takes = f"one of {', '.join(card.controls)}" if card.controls else "left out with this model"
        raise InvalidRequest(
            f"control must be {takes}, got {str(control)[:40]!r}", param="control", code="unsupported_value"
        )
    return control


def _strength(given: dict[str, Any], prompt: str, inputs: EditInputs) -> float:
    if "strength" in given:
        return float(given["strength"])
    if inputs.mask is not None:
        return MASKED_STRENGTH
    return EDIT_STRENGTH if prompt.strip() else VARIATION_STRENGTH


def _output_format(name: Any) -> OutputFormat:
    """In any case; jpg is jpeg."""
    formats: dict[Any, OutputFormat] = {format: format for format in get_args(OutputFormat)} | {"jpg": "jpeg"}
    lowered = name.lower() if isinstance(name, str) else name
    if lowered not in formats:
        raise InvalidRequest(f"output_format must be one of png, jpeg, webp, got {name!r}", param="output_format")
    return formats[lowered]


def _solver(name: Any) -> Solver:
    solvers: dict[Any, Solver] = {solver: solver for solver in get_args(Solver)}
    if not isinstance(name, str) or name not in solvers:
        raise InvalidRequest(f"solver must be one of {', '.join(solvers)}, got {str(name)[:40]!r}", param="solver")
    return solvers[name]


def _loras(choices: Sequence[str | LoraChoice], card: ModelCard) -> tuple[LoraChoice, ...]:
    named = (choices,) if isinstance(choices, str | LoraChoice) else choices
    if not all(isinstance(choice, str | LoraChoice) for choice in named):
        raise InvalidRequest("loras must be names or LoraChoice objects", param="loras", code="invalid_type")
    loras = tuple(LoraChoice(choice) if isinstance(choice, str) else choice for choice in named)
    if len(loras) > MAX_LORAS:
        raise InvalidRequest(f"loras may name at most {MAX_LORAS} LoRAs, got {len(loras)}", param="loras")
    for lora in loras:
        check_range("loras", lora.scale, LORA_SCALE)
        if lora.name not in card.loras:
            raise InvalidRequest(
                f"there is no LoRA {lora.name[:64]!r}; there are {', '.join(card.loras[:16]) or 'none'}",
                param="loras",
                code="lora_not_found",
            )
    return loras
