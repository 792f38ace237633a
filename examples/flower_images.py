"""Generated flowers of ten species, told apart by their shape alone.

Not a program. A petal's edge is a rose curve, flattened or sharpened: at angle t the flower reaches

    radius(t) = size (inner + (1 - inner) |cos(petals t / 2)|^sharpness)

A pinwheel turns t with the distance from the centre, a second whorl stands in the gaps of the first, and a trumpet or
stripes ring the middle. Colour, size, place, rotation, tilt, light, leaves, a neighbour's petal and noise say nothing
about the species: they come from the same distributions for all ten.
"""

from typing import NamedTuple

import numpy as np

CHUNK = 500  # images painted at once: what fits the processor's cache


class Species(NamedTuple):
    """petals: how many. sharpness: below 1 round, above 1 pointed. inner: how deep the gaps are, 1 is no gap."""

    name: str
    petals: int
    sharpness: float
    inner: float
    twist: float = 0.0  # radians that a petal turns from centre to tip
    whorl: float = 0.0  # size of a second, inner whorl
    trumpet: float = 0.0  # radius of a ring around the middle
    stripes: int = 0  # rings of shade, as in a rose
    middle: float = 0.18  # radius


SPECIES = (
    Species("trillium", 3, 0.8, 0.1),
    Species("poppy", 4, 0.4, 0.2, middle=0.35),
    Species("buttercup", 5, 0.6, 0.2),
    Species("periwinkle", 5, 0.6, 0.2, twist=1.4),
    Species("lily", 6, 2.0, 0.1),
    Species("water lily", 7, 0.8, 0.4, whorl=0.7),
    Species("narcissus", 6, 0.8, 0.3, trumpet=0.45),
    Species("daisy", 11, 0.9, 0.25),
    Species("sunflower", 11, 0.7, 0.5, middle=0.55),
    Species("rose", 5, 0.3, 0.8, stripes=3),
)

# Petals are of any of these colours, whatever the species: white, yellow, orange, red, pink, violet, blue.
PETALS = np.array(
    [
        [0.95, 0.93, 0.9],
        [0.95, 0.85, 0.2],
        [0.95, 0.55, 0.15],
        [0.85, 0.15, 0.15],
        [0.95, 0.55, 0.7],
        [0.6, 0.3, 0.75],
        [0.35, 0.45, 0.9],
    ],
    np.float32,
)
MIDDLES = np.array([[0.95, 0.8, 0.15], [0.45, 0.25, 0.1], [0.75, 0.85, 0.35], [0.2, 0.12, 0.12]], np.float32)
GROUNDS = np.array([[0.15, 0.3, 0.1], [0.3, 0.45, 0.15], [0.3, 0.22, 0.12], [0.45, 0.5, 0.5]], np.float32)
LEAVES = np.array([[0.2, 0.5, 0.15], [0.1, 0.35, 0.15], [0.45, 0.6, 0.2]], np.float32)


def flowers(seed: int, count: int, size: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Images [count, size, size, 3] in float32 from 0 to 1, and labels [count] in int32, as many of each species."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % len(SPECIES)).astype(np.int32)
    images = np.empty((count, size, size, 3), np.float32)
    for start in range(0, count, CHUNK):
        chunk = slice(start, start + CHUNK)
        images[chunk] = _paint(rng, labels[chunk], size)
    return images, labels


class _Draw:
    """Random numbers of one chunk, as float32 with a place for height and width."""

    def __init__(self, rng: np.random.Generator, count: int):
        self.rng, self.count = rng, count

    def between(self, low: float, high: float) -> np.ndarray:
        return self.rng.uniform(low, high, (self.count, 1, 1)).astype(np.float32)

    def angle(self) -> np.ndarray:
        return self.between(0, 2 * np.pi)

    def color(self, palette: np.ndarray) -> np.ndarray:
        chosen = palette[self.rng.integers(len(palette), size=self.count)]
        varied = chosen + self.rng.normal(0, 0.07, (self.count, 3))
        return varied.astype(np.float32)[:, None, None]


def _paint(rng: np.random.Generator, labels: np.ndarray, size: int) -> np.ndarray:
    draw = _Draw(rng, len(labels))
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    y, x = axis[None, :, None], axis[None, None, :]
    soft = np.float32(1.2 / size)  # edges are about a pixel wide at any size
    slope = draw.between(-0.25, 0.25) * x + draw.between(-0.25, 0.25) * y
    image = draw.color(GROUNDS) + slope[..., None] * 0.5
    for _ in range(3):
        image = _cover(image, _leaf(draw, x, y, soft), draw.color(LEAVES))
    image = _cover(image, _leaf(draw, x, y, soft, far=0.8), draw.color(PETALS))  # a neighbour's petal
    image = _flower(draw, image, labels, x, y, soft)
    light = draw.between(0.75, 1.2) + slope
    noise = rng.standard_normal(image.shape, np.float32) * draw.between(0.01, 0.05)[..., None]
    return np.clip(image * light[..., None] + noise, 0, 1)


def _flower(draw: _Draw, image, labels, x, y, soft):
    traits = {name: np.array([s[i] for s in SPECIES], np.float32)[labels, None, None] for i, name in _numbered()}
    size = draw.between(0.72, 0.92)
    radius, angle = _polar(x - draw.between(-0.12, 0.12), y - draw.between(-0.12, 0.12), draw)
    angle = angle + traits["twist"] * radius / size
    color, shade = draw.color(PETALS), draw.between(0.2, 0.5)
    for whorl in range(2):
        # The second whorl is smaller, turned by half a petal, and empty where the species has none.
        reach = size * (traits["whorl"] if whorl else 1)
        wave = np.abs(np.cos(traits["petals"] * angle / 2 + whorl * np.pi / 2)) + np.float32(1e-3)
        edge = reach * (traits["inner"] + (1 - traits["inner"]) * wave ** traits["sharpness"])
        depth = radius / np.maximum(edge, np.float32(0.05))
        rings = (traits["stripes"] > 0) * 0.5 * np.cos(2 * np.pi * traits["stripes"] * depth)
        tone = 1 - shade * (1 - np.minimum(depth, 1)) * (1 - 2 * wave * 0.3) + 0.35 * rings - 0.45 * whorl
        image = _cover(image, _inside(edge - radius, soft), color * tone[..., None])
    ring = _inside(0.09 * size - np.abs(radius - size * traits["trumpet"]), soft) * (traits["trumpet"] > 0)
    middle = draw.color(MIDDLES)
    image = _cover(image, ring, middle * np.float32(0.8))
    return _cover(image, _inside(size * traits["middle"] * draw.between(0.8, 1.2) - radius, soft), middle)


def _numbered():
    return [(i, name) for i, name in enumerate(Species._fields) if name != "name"]


def _polar(x, y, draw: _Draw):
    """Distance and angle around the origin, seen from a random side and squeezed by up to a fifth."""
    turn, squeeze, rotation = draw.angle(), draw.between(1, 1.25), draw.angle()
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    across = across * squeeze
    return np.sqrt(along**2 + across**2), np.arctan2(across, along) + rotation


def _leaf(draw: _Draw, x, y, soft, far: float = 0.3):
    """A pointed ellipse whose middle is at least `far` from the picture's."""
    place, distance, turn = draw.angle(), draw.between(far, 1.1), draw.angle()
    x, y = x - distance * np.cos(place), y - distance * np.sin(place)
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    length, width = draw.between(0.3, 0.9), draw.between(0.08, 0.25)
    return _inside(width * (1 - (along / length) ** 2) - np.abs(across), soft)


def _inside(distance, soft):
    """1 inside, 0 outside, a ramp of one pixel between."""
    return np.clip(0.5 + distance / (2 * soft), 0, 1)


def _cover(image, mask, color):
    return image + mask[..., None] * (color - image)
