"""Puts a scene into words: names and synonyms, varied templates, photographic filler, some other languages.

Knows nothing of pictures. No prompt of free_prompts.json can come out of here: they are the test.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from random import Random

from scripts.train_demo.scenes import Scene
from scripts.train_demo.sources import Concept

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "white": ("white", "plain white", "bright white"),
    "black": ("black", "pitch black"),
    "gray": ("gray", "grey"),
    "red": ("red", "bright red"),
    "orange": ("orange", "bright orange"),
    "yellow": ("yellow", "bright yellow"),
    "green": ("green", "bright green"),
    "light green": ("light green", "pale green", "mint green"),
    "dark green": ("dark green", "deep green", "forest green"),
    "teal": ("teal", "turquoise"),
    "blue": ("blue", "bright blue"),
    "light blue": ("light blue", "sky blue", "pale blue"),
    "dark blue": ("dark blue", "navy blue", "navy"),
    "purple": ("purple", "violet"),
    "lavender": ("lavender", "lilac", "light purple"),
    "pink": ("pink", "light pink"),
    "brown": ("brown",),
    "beige": ("beige", "cream"),
}

EXTRA_NAMES: dict[str, tuple[str, ...]] = {
    "sunrise over mountains": ("sunset in the mountains", "sunset over mountains", "mountain sunset"),
    "red apple": ("apple",),
    "automobile": ("car",),
    "hot beverage": ("coffee", "cup of coffee", "cup of tea"),
    "shortcake": ("cake", "slice of cake"),
    "hamburger": ("burger", "cheeseburger"),
    "french fries": ("fries", "chips"),
    "soccer ball": ("football", "soccer"),
    "red heart": ("heart", "love heart"),
    "spouting whale": ("whale blowing water",),
    "airplane": ("plane", "aeroplane", "jet"),
    "bicycle": ("bike",),
    "deciduous tree": ("tree",),
    "evergreen tree": ("pine tree", "fir tree"),
    "ear of corn": ("corn", "maize"),
    "beer mug": ("beer", "glass of beer"),
    "wine glass": ("wine", "glass of wine", "red wine"),
    "wrapped gift": ("gift", "present"),
    "mobile phone": ("phone", "smartphone", "cell phone"),
    "television": ("tv",),
    "pile of poo": ("poop",),
    "musical keyboard": ("piano",),
    "game die": ("die", "dice"),
    "gem stone": ("diamond", "gem"),
    "laptop": ("computer", "notebook computer"),
    "fire engine": ("fire truck",),
    "ringed planet": ("saturn", "planet"),
    "soft ice cream": ("ice cream cone",),
    "high voltage": ("lightning", "lightning bolt"),
    "droplet": ("drop of water", "water drop"),
    "doughnut": ("donut",),
    "cooking": ("fried egg",),
    "jack-o-lantern": ("halloween pumpkin", "pumpkin"),
    "flying saucer": ("ufo",),
    "locomotive": ("steam train", "steam engine"),
    "ship": ("cruise ship",),
    "house": ("home",),
}

STYLES = (
    "a picture of", "an image of", "a photo of", "a photograph of", "a 3D render of", "an illustration of",
    "an icon of", "an emoji of", "a drawing of", "a painting of", "draw", "show me", "generate", "create an image of",
    "please draw", "a nice picture of", "a cartoon of", "a rendering of", "a sticker of", "clip art of",
)  # fmt: skip
ADJECTIVES = ("beautiful", "vibrant", "cute", "realistic", "shiny", "colorful", "lovely", "simple", "detailed")
FILLERS = (
    "4k", "8k", "high quality", "highly detailed", "masterpiece", "studio lighting", "cinematic", "digital art", "3d",
    "photorealistic", "sharp focus", "professional photography", "minimalist", "trending on artstation", "best quality",
    "ultra hd", "soft light", "octane render", "centered", "vivid colors",
)  # fmt: skip

SIZE_WORDS = {
    "tiny": ("tiny", "very small", "minuscule"),
    "small": ("small", "little"),
    "large": ("large", "huge", "big", "giant"),
}
PLACE_WORDS: dict[str, tuple[str, ...]] = {
    "left": ("on the left", "on the left side", "at the left"),
    "right": ("on the right", "on the right side", "at the right"),
    "top": ("at the top", "in the upper half"),
    "bottom": ("at the bottom", "in the lower half"),
    "top left": ("in the top left corner", "in the upper left corner", "at the top left"),
    "top right": ("in the top right corner", "in the upper right corner", "at the top right"),
    "bottom left": ("in the bottom left corner", "in the lower left corner", "at the bottom left"),
    "bottom right": ("in the bottom right corner", "in the lower right corner", "at the bottom right"),
}
COUNT_WORDS = {
    2: ("two", "2", "a pair of", "a couple of"),
    3: ("three", "3"),
    4: ("four", "4"),
    5: ("five", "5"),
    6: ("six", "6", "half a dozen"),
}

ROW_PAIRS = (
    "{a} left of {b}", "{a} to the left of {b}", "{a} on the left of {b}", "{a} on the left and {b} on the right",
    "{b} right of {a}", "{b} to the right of {a}", "{b} on the right of {a}", "{b} on the right and {a} on the left",
    "{a} next to {b}", "{a} beside {b}", "{a} and {b}", "{a} and {b} side by side", "{a} with {b}", "{a}, {b}",
)  # fmt: skip
COLUMN_PAIRS = (
    "{a} above {b}", "{a} on top of {b}", "{a} over {b}", "{a} at the top and {b} at the bottom",
    "{b} below {a}", "{b} under {a}", "{b} beneath {a}", "{b} underneath {a}",
)  # fmt: skip

BACKGROUNDS = (
    "{x} on a {c} background", "{x} on {c} background", "{x} on {c}", "{x}, {c} background",
    "{x} against a {c} background", "{x} against a {c} backdrop", "{x} in front of a {c} wall",
    "{x} with a {c} background", "{c} background with {x}", "{x} on a plain {c} background",
    "{x} on a solid {c} background", "on a {c} background, {x}",
)  # fmt: skip

FOREIGN_BACKGROUNDS = {
    "de": "{x} auf {c} Hintergrund",
    "fr": "{x} sur fond {c}",
    "es": "{x} sobre fondo {c}",
    "it": "{x} su sfondo {c}",
    "pt": "{x} sobre fundo {c}",
    "nl": "{x} op een {c} achtergrond",
}
FOREIGN_COLOURS = {
    "de": dict(zip(("white", "black", "gray", "red", "orange", "yellow", "green", "light green", "dark green", "blue",
                    "light blue", "dark blue", "purple", "pink", "brown"),
                   ("weißem", "schwarzem", "grauem", "rotem", "orangem", "gelbem", "grünem", "hellgrünem",
                    "dunkelgrünem", "blauem", "hellblauem", "dunkelblauem", "lila", "rosa", "braunem"), strict=True)),
    "fr": dict(zip(("white", "black", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"),
                   ("blanc", "noir", "gris", "rouge", "orange", "jaune", "vert", "bleu", "violet", "rose", "marron"),
                   strict=True)),
    "es": dict(zip(("white", "black", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"),
                   ("blanco", "negro", "gris", "rojo", "naranja", "amarillo", "verde", "azul", "morado", "rosa",
                    "marrón"), strict=True)),
    "it": dict(zip(("white", "black", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"),
                   ("bianco", "nero", "grigio", "rosso", "arancione", "giallo", "verde", "blu", "viola", "rosa",
                    "marrone"), strict=True)),
    "pt": dict(zip(("white", "black", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"),
                   ("branco", "preto", "cinza", "vermelho", "laranja", "amarelo", "verde", "azul", "roxo", "rosa",
                    "marrom"), strict=True)),
    "nl": dict(zip(("white", "black", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"),
                   ("witte", "zwarte", "grijze", "rode", "oranje", "gele", "groene", "blauwe", "paarse", "roze",
                    "bruine"), strict=True)),
}  # fmt: skip


CODE = re.compile(r"[a-z]\d|\d[a-z]")
"""Marks short codes that nobody would say, such as `clock1230`."""


DESCRIPTIONS = Path(__file__).with_name("descriptions.txt")


def read_descriptions() -> dict[str, tuple[str, ...]]:
    """Hand-written phrases by label; a line of the file is `label | phrase | phrase`."""
    lines = [line.split(" | ") for line in DESCRIPTIONS.read_text(encoding="utf-8").splitlines()]
    return {label: tuple(phrases) for label, *phrases in lines}


class Names:
    """What each concept may be called: its label, other names, the tags that are its alone, and descriptions."""

    def __init__(self, concepts: list[Concept]) -> None:
        self.concepts = concepts
        tags = Counter(tag for concept in concepts for tag in set(concept.tags))
        labels = {concept.label.lower() for concept in concepts}
        extra = {name for names in EXTRA_NAMES.values() for name in names}
        self.other: list[tuple[str, ...]] = []
        self.own_tags: list[tuple[str, ...]] = []
        written = read_descriptions()
        self.described = [written[concept.label] for concept in concepts]
        for concept in concepts:
            own = [tag for tag in concept.tags if tags[tag] == 1 and len(tag) > 3]
            aliases = [name for name in concept.aliases if name.lower() not in extra and not CODE.search(name)]
            names = [*EXTRA_NAMES.get(concept.label, ()), *aliases]
            self.other.append(tuple(name for name in dict.fromkeys(names) if name.lower() not in labels))
            self.own_tags.append(tuple(tag for tag in dict.fromkeys(own) if tag not in labels | set(names)))

    def english(self, concept: int, rng: Random) -> str:
        """The label, often another name, now and then a tag."""
        choice, others, tags = rng.random(), self.other[concept], self.own_tags[concept]
        if others and choice < 0.3:
            return rng.choice(others)
        return rng.choice(tags) if tags and choice > 0.93 else self.concepts[concept].label

    def description(self, concept: int, rng: Random) -> str:
        """A phrase that says what it is without its name, half of the time with a word or two left out."""
        return shortened(rng.choice(self.described[concept]), rng)

    def everything(self, concept: int) -> tuple[str, ...]:
        return (self.concepts[concept].label, *self.other[concept], *self.own_tags[concept])


def shortened(phrase: str, rng: Random) -> str:
    """Half of the time with a word or two left out."""
    words = phrase.split()
    for _ in range(rng.choice((0, 0, 1, 2))):
        if len(words) > 3:
            words.pop(rng.randrange(len(words)))
    return " ".join(words)


def loosely(phrase: str, rng: Random) -> str:
    """A description as one may type it: shortened, now and then with an article or photographic filler."""
    words = shortened(phrase, rng)
    choice = rng.random()
    if choice < 0.15:
        return _finish(words, rng)
    return with_article(words, rng) if choice < 0.3 else words


def caption(scene: Scene, names: Names, rng: Random) -> str:
    """One of very many ways to ask for the scene."""
    if scene.layout == "single" and scene.size == "normal" and scene.place is None:
        if rng.random() < 0.1:
            return _foreign(scene, names, rng)
        if rng.random() < 0.08:
            return _by_tags(scene, names, rng)
        if rng.random() < 0.3:
            return _finish(_with_background(names.description(scene.concepts[0], rng), scene, rng), rng)
    words = _with_background(_things(scene, names, rng), scene, rng)
    return _finish(words, rng)


def _with_background(words: str, scene: Scene, rng: Random) -> str:
    if scene.colour is None:
        return words
    return rng.choice(BACKGROUNDS).format(x=words, c=rng.choice(COLOUR_WORDS[scene.colour]))


def _things(scene: Scene, names: Names, rng: Random) -> str:
    if scene.layout == "count":
        return f"{rng.choice(COUNT_WORDS[scene.count])} {plural(names.english(scene.concepts[0], rng))}"
    if scene.layout == "single":
        return _single(scene, names, rng)
    parts = [with_article(names.english(concept, rng), rng) for concept in scene.concepts]
    if len(parts) == 2:
        return rng.choice(ROW_PAIRS if scene.layout == "row" else COLUMN_PAIRS).format(a=parts[0], b=parts[1])
    return f"{', '.join(parts[:-1])} and {parts[-1]}{rng.choice(['', ' in a row', ' side by side'])}"


def _single(scene: Scene, names: Names, rng: Random) -> str:
    name = names.english(scene.concepts[0], rng)
    if scene.size == "normal":
        if rng.random() < 0.15:
            name = f"{rng.choice(ADJECTIVES)} {name}"
        words = with_article(name, rng)
        words = f"{rng.choice(STYLES)} {words}" if rng.random() < 0.4 else words
    elif scene.size == "large" and rng.random() < 0.3:
        words = f"a close-up of {with_article(name, rng)}"
    else:
        words = with_article(f"{rng.choice(SIZE_WORDS[scene.size])} {name}", rng)
    return f"{words} {rng.choice(PLACE_WORDS[scene.place])}" if scene.place else words


def _foreign(scene: Scene, names: Names, rng: Random) -> str:
    concept = names.concepts[scene.concepts[0]]
    language = rng.choice(list(concept.names) or ["en"])
    name = concept.names.get(language, concept.label).replace("Flagge: ", "Flagge ").replace(":", "")
    if scene.colour is None:
        return name
    colour = FOREIGN_COLOURS.get(language, {}).get(scene.colour)
    if colour is None:
        return _with_background(name, scene, rng)
    return FOREIGN_BACKGROUNDS[language].format(x=name, c=colour)


def _by_tags(scene: Scene, names: Names, rng: Random) -> str:
    """Three or four of the concept's tags, in any order; with its label where it has few."""
    concept = names.concepts[scene.concepts[0]]
    tags = rng.sample(concept.tags, min(len(concept.tags), rng.randint(3, 5)))
    if len(tags) < 4:
        tags.insert(rng.randint(0, len(tags)), concept.label)
    return _with_background(rng.choice([" ", ", "]).join(tags), scene, rng)


def _finish(words: str, rng: Random) -> str:
    if rng.random() < 0.2:
        words = ", ".join([words, *rng.sample(FILLERS, rng.randint(1, 3))])
    if rng.random() < 0.3:
        words = words[0].upper() + words[1:]
    return words + "." if rng.random() < 0.15 else words


def with_article(name: str, rng: Random) -> str:
    """`a`, `an` or `the` before a name; now and then nothing."""
    if rng.random() < 0.3 or name[0].isdigit():
        return name
    if name.startswith("flag of"):
        return f"the {name}"
    if name.endswith("s") and not name.endswith(("ss", "us")):
        return name
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


def plural(name: str) -> str:
    """The head word in the plural: `flags of Japan`, `slices of cake`, `red apples`."""
    for joint in (" of ", " with ", " in ", " on ", " over ", " at ", " without "):
        head, found, rest = name.partition(joint)
        if found:
            return f"{_plural_word(head)}{joint}{rest}"
    return _plural_word(name)


def _plural_word(word: str) -> str:
    if word.endswith(("s", "x", "ch", "sh", "z")):
        return word if word.endswith("s") and not word.endswith("ss") else f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"
