"""The echo worker as a model that draws by pictures, which it reads at 128 x 128 pixels in all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fluxserve.config import PipelineConfig
from fluxserve.sizes import References
from fluxserve.worker.process import serve
from tests.fake_pipeline import describe_fake, load_fake
from tests.server.echo_worker import DEV_CARD, EchoPipeline

RULE = References(most=4, limit=16, area=128 * 128)


class ReadingPipeline(EchoPipeline):
    card = replace(DEV_CARD, references=RULE, max_pixels=6 * 128 * 128)


def load_reading(
    config: PipelineConfig, progress: Callable[[str, int, int], None], _: int | None = None
) -> ReadingPipeline:
    fake = load_fake(config, progress)
    return ReadingPipeline(fake._folder, fake.max_batch)


if __name__ == "__main__":
    serve(load_reading, describe_fake)
