"""A small causal transformer on the text that every Python brings along: its own language reference.

Not a program. `pydoc_data.topics` is what `help("LAMBDAS")` prints: half a million characters of English and code. The
model is one of `networks.py`'s, so that many of them train side by side.
"""

from pydoc_data import topics

import jax
import jax.numpy as jnp
import numpy as np
from networks import Data, Network, init_norm, norm

TEXT = "\n".join(topics.topics[name] for name in sorted(topics.topics))
ALPHABET = sorted(set(TEXT))
HEADS = 4


def text(runs: int, context: int, train: int, test: int) -> Data:
    """Windows of `context` characters, and the character after each: to train on, to test and as many to validate.

    The last tenth of the text is for testing, the tenth before it for validation; the three share no text. Windows are
    spread evenly over their part and the same for every run; in random order, for neighbours are about the same things,
    and a batch should not be.
    """
    codes = np.searchsorted(ALPHABET, list(TEXT)).astype(np.int32)
    trained, validated, tested = np.split(codes, [len(codes) * 8 // 10, len(codes) * 9 // 10])
    parts = []
    for part, count in ((trained, train), (tested, test), (validated, test)):
        starts = np.random.default_rng(0).permutation(np.linspace(0, len(part) - context - 1, count).astype(int))
        windows = part[starts[:, None] + np.arange(context + 1)]
        parts += [windows[:, :-1], windows[:, 1:]]
    return Data(*(jnp.broadcast_to(part, (runs, *part.shape)) for part in parts))


def frequency_loss(data: Data) -> float:
    """Nats per test character for guessing by how frequent it is in training: what a network has to beat."""
    counts = np.bincount(np.ravel(data.y[0]), minlength=len(ALPHABET)) + 1
    return float(-np.log(counts / counts.sum())[np.ravel(data.y_test[0])].mean())


def transformer(name: str, *, width: int, layers: int, context: int, post: bool = False) -> Network:
    """Attention and a perceptron in each layer, around which x goes on; norms by name.

    before (pre-norm)    x + f(norm(x)), and a norm at the end
    after (post-norm)    norm(x + f(x))
    """

    def init(key, setting):
        keys = iter(jax.random.split(key, 7))
        dense = lambda a, b: jax.random.normal(next(keys), (layers, a, b)) / np.sqrt(a)
        stack = lambda tree: jax.tree.map(lambda a: jnp.broadcast_to(a, (layers, *a.shape)), tree)
        params, stats = init_norm(name, width)
        blocks = {
            "attention": {"in": dense(width, 3 * width), "out": dense(width, width), "norm": stack(params)},
            "perceptron": {"in": dense(width, 4 * width), "out": dense(4 * width, width), "norm": stack(params)},
        }
        embedding = {
            "character": jax.random.normal(next(keys), (len(ALPHABET), width)),
            "position": jax.random.normal(next(keys), (context, width)),
        }
        last = {"kernel": jax.random.normal(next(keys), (width, len(ALPHABET))) / np.sqrt(width), "norm": params}
        return {"embedding": embedding, "blocks": blocks, "last": last}, (stack(stats), stack(stats), stats)

    def apply(params, stats, x, training, key):
        def block(x, layer):
            params, stats = layer
            new = []
            for (part, function), s in zip((("attention", attend), ("perceptron", perceive)), stats, strict=True):
                p = params[part]
                if post:
                    x, s = norm(name, p["norm"], s, x + function(p, x), training)
                else:
                    h, s = norm(name, p["norm"], s, x, training)
                    x = x + function(p, h)
                new.append(s)
            return x, tuple(new)

        x = params["embedding"]["character"][x] + params["embedding"]["position"]
        x, new = jax.lax.scan(block, x, (params["blocks"], stats[:2]))
        last = stats[2]
        if not post:
            x, last = norm(name, params["last"]["norm"], last, x, training)
        return x @ params["last"]["kernel"], (*new, last)

    return Network(init, apply)


def attend(params, x):
    *batch, time, width = x.shape
    q, k, v = jnp.moveaxis((x @ params["in"]).reshape(*batch, time, 3, HEADS, width // HEADS), -3, 0)
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    return y.reshape(x.shape) @ params["out"]


def perceive(params, x):
    return jax.nn.gelu(x @ params["in"]) @ params["out"]
