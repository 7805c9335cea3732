"""Everything a program does with openai-python, told as JSON: `python python_client.py BASE_URL KEY SEED IMAGE MASK`.

Runs under each version of the client, so it imports nothing but the client and the standard library.
"""

from __future__ import annotations

import base64
import json
import sys
import threading
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import openai

warnings.simplefilter("ignore", DeprecationWarning)  # variations are marked deprecated in the newest client

BASE_URL, KEY, IMAGE, MASK = sys.argv[1], sys.argv[2], Path(sys.argv[4]), Path(sys.argv[5])
SEED = int(sys.argv[3])
client = openai.OpenAI(base_url=BASE_URL, api_key=KEY)


def tell(image: Any) -> dict[str, Any]:
    """One item of an answer, its picture fetched or decoded."""
    if image.url is not None:
        with urllib.request.urlopen(image.url) as answer:
            data, kind = answer.read(), answer.headers["content-type"]
    else:
        data, kind = base64.b64decode(image.b64_json, validate=True), None
    return {"seed": image.seed, "url": image.url is not None, "type": kind, "png": data[:8] == b"\x89PNG\r\n\x1a\n"}


def refusal(**fields: Any) -> dict[str, Any]:
    """How the client reports an error."""
    failing = fields.pop("using", client.with_options(max_retries=0))
    try:
        failing.images.generate(**{"prompt": "a cat", **fields})
    except openai.APIError as error:
        return {"kind": type(error).__name__, "code": error.code, "param": error.param}
    return {"kind": "none"}


def generate_url() -> Any:
    answer = client.images.generate(model="default", prompt="A vibrant sunset", n=1, extra_body={"seed": SEED})
    return [tell(image) for image in answer.data]


def generate_b64() -> Any:
    answer = client.images.generate(
        prompt="a cat", n=2, size="256x320", response_format="b64_json", extra_body={"seed": SEED}
    )
    return {"images": [tell(image) for image in answer.data], "size": answer.size, "tokens": answer.usage.output_tokens}


def stream(**fields: Any) -> list[list[Any]]:
    events = client.images.generate(**{"prompt": "a cat", "stream": True, "extra_body": {"seed": SEED}, **fields})
    told = []
    for event in events:
        index = getattr(event, "partial_image_index", None)
        told.append([event.type, index, event.image_index, len(event.b64_json) > 0])
    return told


def stream_with_previews() -> Any:
    return {str(count): stream(partial_images=count) for count in range(4)}


def stream_two() -> Any:
    return stream(n=2)


def stream_that_fails() -> Any:
    try:
        stream(prompt="a cat [nan:vae]")
    except openai.APIError as error:
        return {"kind": type(error).__name__, "code": error.code}
    return {"kind": "none"}


def edit() -> Any:
    answer = client.images.edit(image=IMAGE, prompt="a cat", extra_body={"seed": SEED})
    listed = client.images.edit(image=[IMAGE], prompt="a cat", extra_body={"seed": SEED})
    masked = client.images.edit(image=IMAGE, mask=MASK, prompt="a cat", extra_body={"seed": SEED, "strength": 0.5})
    return [tell(image) for image in (answer.data[0], listed.data[0], masked.data[0])]


def edit_stream() -> Any:
    events = client.images.edit(image=IMAGE, prompt="a cat", stream=True, partial_images=1)
    return [event.type for event in events]


def variation() -> Any:
    return [tell(image) for image in client.images.create_variation(image=IMAGE, n=2).data]


def models() -> Any:
    return {"list": [model.id for model in client.models.list()], "one": client.models.retrieve("fluxserve/fake").id}


def refusals() -> Any:
    wrong = client.with_options(api_key="wrong", max_retries=0)
    return {
        "size": refusal(size="1000x1000"),
        "model": refusal(model="sdxl"),
        "key": refusal(using=wrong),
        "key in a stream": refusal(using=wrong, stream=True),
        "size in a stream": refusal(size="7x7", stream=True),
        "deadline": refusal(using=client, prompt="a [slow:step:0.2]", extra_headers={"x-request-timeout": "0.1"}),
    }


def leave_the_stream() -> Any:
    slow = {"prompt": "a cat [slow:step:0.2]", "partial_images": 3, "extra_body": {"seed": SEED + 1, "steps": 40}}
    events = client.images.generate(stream=True, **slow)
    first = next(iter(events)).type
    events.close()
    client.images.generate(prompt="a cat")
    return first


def time_out() -> Any:
    """Two seconds of drawing for a client that waits one, and tries three times."""
    hasty = client.with_options(timeout=1.0, max_retries=2)
    answer = hasty.images.generate(prompt="a cat [slow:step:0.5]", extra_body={"seed": SEED + 2})
    return [tell(image) for image in answer.data]


def three_at_once() -> Any:
    seeds: dict[int, int] = {}

    def draw(seed: int) -> None:
        answer = client.images.generate(prompt="a cat [slow:step:0.05]", extra_body={"seed": seed})
        seeds[seed] = answer.data[0].seed

    threads = [threading.Thread(target=draw, args=(SEED + 3 + i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return all(asked == drawn for asked, drawn in seeds.items()) and len(seeds) == 3


SCENARIOS = [
    generate_url,
    generate_b64,
    stream_with_previews,
    stream_two,
    stream_that_fails,
    edit,
    edit_stream,
    variation,
    models,
    leave_the_stream,
    time_out,
    three_at_once,
    refusals,
]

if __name__ == "__main__":
    json.dump({scenario.__name__: scenario() for scenario in SCENARIOS}, sys.stdout)
