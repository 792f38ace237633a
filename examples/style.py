"""Style: the colours of one photograph given to another, with instance, batch and layer statistics.

    python examples/style.py [--content FILE --style FILE] [--seeds 5] [--seed 0] [--quick]

Adaptive instance norm, y = std(style) (x - mean(x)) / std(x) + mean(style), channel by channel, on the colours of
scikit-learn's two sample photographs, or of two images of yours. What is put back is always the style's mean and
standard deviation per channel; what changes is over which numbers x is normalized: one photograph, channel by channel
(instance), both photographs (batch), all channels of one photograph (layer). Nothing is trained: seeds choose crops,
half as high and half as wide. Each content is also seen under an orange light (blue halved, green a little less) and
should look the same in a given style. Leaves results.json, style.png and, at full size, content_in_style.png in
runs/style/.

A picture can show a level of 255, not less. A crop has the style if its colours are the style's to within a level, and
the light changes it by less than one. Verdict: "yes" if every crop has it with instance statistics and none with batch
or layer statistics, "not alone" if some has, "no" if not every crop has it with instance statistics. What was found is
in examples/README.md.

Source: Huang & Belongie 2017, arXiv:1703.06868, eq. 8, there on the features of a deep network; why contrast should not
matter: Ulyanov, Vedaldi & Lempitsky 2016, arXiv:1607.08022. Lesson 1 recommends instance norm for art and style.
"""

import argparse

import jax.numpy as jnp
import numpy as np
from experiment import middle, options, recording
from matplotlib import pyplot as plt
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

import jaxnorm as jn

SPACE, EPSILON = (0, 1), 1e-5
LIGHT = np.array([1.0, 0.8, 0.5], np.float32)
NORMS = ("instance", "batch", "layer")


def restyle(name: str, content, style):
    """Normalize content over the norm's numbers, then put the style's colour statistics on it. Not cut to 0 to 1."""
    target = jn.moments(style, SPACE)
    if name == "instance":
        m, axis = jn.moments(content, SPACE), SPACE
    elif name == "batch":  # photographs of different sizes have no common array, but their moments merge
        m, axis = jn.merge(jn.moments(content, SPACE), target), SPACE
    else:
        m, axis = jn.moments(content, None), None
    normalized = jn.normalize(content, m.mean, m.var, axis=axis, epsilon=EPSILON)
    return jn.modulate(normalized, jnp.sqrt(target.var), target.mean)


def compare(name: str, content, style) -> dict:
    """In levels of 255: colours of the result, how far from the style's, how much the content's light changes it."""
    y = restyle(name, content, style)
    (mean, std), (style_mean, style_std) = colours(y), colours(style)
    return {
        "mean": mean,
        "std": std,
        "style mean": style_mean,
        "style std": style_std,
        "off": float(np.maximum(abs(mean - style_mean), abs(std - style_std)).max()),
        "light": 255 * float(jnp.sqrt(jnp.mean((restyle(name, content * LIGHT, style) - y) ** 2))),
        "cut": float(jnp.mean((y < 0) | (y > 1))),
    }


def colours(image) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of red, green and blue, in levels of 255."""
    m = jn.moments(image, SPACE)
    return 255 * np.asarray(m.mean), 255 * np.sqrt(m.var)


def crop(image: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    height, width = (max(1, n // 2) for n in image.shape[:2])
    top, left = (int(draw.integers(0, n - part + 1)) for n, part in zip(image.shape, (height, width), strict=False))
    return image[top : top + height, left : left + width]


def read(option: str, path: str) -> np.ndarray:
    """Colours from 0 to 1, upright."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow's readers raise
        rule = f"style: {option} must be an image that Pillow can read"
        raise SystemExit(f"{rule}; got {path} ({error}). Save it as PNG or JPEG.") from None
    return (pixels / 255).astype(np.float32)


def photographs(chosen: argparse.Namespace) -> dict[str, np.ndarray]:
    """Content and style by name."""
    china, flower = ((image / 255).astype(np.float32) for image in load_sample_images().images)
    content = ("china", china) if chosen.content is None else ("content", read("--content", chosen.content))
    style = ("flower", flower) if chosen.style is None else ("style", read("--style", chosen.style))
    return dict([content, style])


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--content", metavar="FILE", help="an image to recolour (default: scikit-learn's china.jpg)")
    parser.add_argument("--style", metavar="FILE", help="an image with the colours (default: its flower.jpg)")


def main() -> None:
    chosen = options(__doc__, "style", extend=extend)
    images = photographs(chosen)
    one, other = images
    pairs = [(one, other), (other, one)]
    with recording("style", chosen, 1 + chosen.seeds) as record:
        picture(record, images, pairs)
        measure(record, images, pairs, piece="whole", seed=None)
        for seed in range(chosen.seed, chosen.seed + chosen.seeds):
            draw = np.random.default_rng(seed)
            measure(record, {name: crop(images[name], draw) for name in images}, pairs, piece="crop", seed=seed)
        report(record, images, pairs)


def measure(record, images, pairs, **piece) -> None:
    for content, style in pairs:
        for name in NORMS:
            numbers = compare(name, images[content], images[style])
            record.add(**piece, norm=name, content=content, style=style, **numbers)
    record.advance()


def picture(record, images, pairs) -> None:
    figure, axes = plt.subplots(2, 5, figsize=(11, 3.4), layout="constrained")
    for row, (content, style) in zip(axes, pairs, strict=True):
        panels = {f"content: {content}": images[content], f"style: {style}": images[style]}
        panels |= {f"{name} statistics": restyle(name, images[content], images[style]) for name in NORMS}
        for axis, (title, image) in zip(row, panels.items(), strict=True):
            axis.imshow(np.clip(image, 0, 1))
            axis.set_title(title)
            axis.axis("off")
        y = np.clip(panels["instance statistics"], 0, 1)
        Image.fromarray((255 * y).round().astype(np.uint8)).save(record.folder / f"{content}_in_{style}.png")
    record.picture(figure)


def report(record, images, pairs) -> None:
    text = lambda values: " ".join(f"{v:.0f}" for v in values)
    rows = []
    for content, style in pairs:
        rows.append((f"{style}, the style", *map(text, colours(images[style])), ""))
        for row in record.rows:
            if (row["piece"], row["content"]) == ("whole", content):
                numbers = (text(row["mean"]), text(row["std"]), f"{row['cut']:.1%}")
                rows.append((f"{content}, {row['norm']} statistics", *numbers))
    columns = ("photograph", "mean of red, green, blue", "standard deviation", "below black or above white")
    record.table("colours of the whole photographs, levels of 255", columns, rows)

    off, light = ({name: record.values(key, norm=name, piece="crop") for name in NORMS} for key in ("off", "light"))
    columns = ("statistics", "farthest from the style's mean and deviation", "changed by an orange light (rms)")
    rows = [(name, middle(off[name]), middle(light[name])) for name in NORMS]
    record.table("crops, levels of 255: median (range)", columns, rows)
    record.claim(
        "Art and style: use instance norm",
        source="lesson 1",
        measured=f"distance from the style's colours, in levels of 255: instance {middle(off['instance'])}, batch "
        f"{middle(off['batch'])}, layer {middle(off['layer'])}; under an orange light the result changes by "
        f"{middle(light['instance'])}, {middle(light['batch'])}, {middle(light['layer'])}",
        verdict=for_style({name: np.maximum(off[name], light[name]) for name in NORMS}),
    )


def for_style(wrong: dict[str, np.ndarray]) -> str:
    """By how many levels each crop is wrong, in its colours or by the light."""
    if wrong["instance"].max() >= 1:
        return "no"
    alone = all(wrong[name].min() >= 1 for name in ("batch", "layer"))
    return "yes, where style is colour statistics" if alone else "not alone"


if __name__ == "__main__":
    main()
