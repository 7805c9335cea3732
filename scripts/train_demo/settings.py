"""Where a run keeps its files and how long each stage is: the defaults of the training and its evaluation."""

from __future__ import annotations

from pathlib import Path

DEFAULT_STATE = Path.home() / ".cache" / "fluxserve" / "train_demo"
PICTURES_PACKAGE_FOLDER = "fetch"
"""Within the state: the packages as downloaded."""

CROP_STEPS, WHOLE_STEPS = 6000, 1500
MEANING_STEPS = 6000
CLIP_STEPS = 450
T5_STEPS = 4000
COARSE_STEPS = 6000
TRANSFORMER_STEPS = 24_000
JUDGE_STEPS = 1200
TRANSFORMER_COOLDOWN = 4000

MODEL = Path(__file__).resolve().parent.parent.parent / "fluxserve" / "demo" / "model"
