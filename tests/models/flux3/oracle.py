"""diffusers' modular pipelines of FLUX.3 on a tiny checkpoint, without the prompt upsampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux3Transformer2DModel
from diffusers.modular_pipelines.flux3 import Flux3AutoBlocks, Flux3DistilledAutoBlocks
from PIL import Image
from transformers import Qwen2Tokenizer, Qwen3VLForConditionalGeneration


class Processor:
    """What the text step asks of Qwen3-VL's processor."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Qwen2Tokenizer.from_pretrained(folder)
        self.apply_chat_template = self.tokenizer.apply_chat_template


class Flux3Oracle:
    def __init__(self, folder: Path, distilled: bool) -> None:
        blocks = Flux3DistilledAutoBlocks() if distilled else Flux3AutoBlocks()
        blocks.sub_blocks.pop("prompt_upsampler")
        self.pipeline = blocks.init_pipeline()
        self.pipeline.update_components(
            text_encoder=Qwen3VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=torch.float32),
            tokenizer=Processor(folder / "tokenizer"),
            vae=AutoencoderKLFlux2.from_pretrained(folder / "vae", torch_dtype=torch.float32),
            transformer=Flux3Transformer2DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32),
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def draw(self, prompt: str, *pictures: Image.Image, seed: int = 7, **options: Any) -> np.ndarray:
        """(height, width, 3) levels."""
        given = {"image": list(pictures)} if pictures else {}
        drawn = self.pipeline(
            prompt=prompt,
            generator=torch.Generator().manual_seed(seed),
            output_type="np",
            output="images",
            **given,
            **options,
        )
        return np.round(drawn[0] * 255)
