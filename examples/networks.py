"""Many small networks at once: one compiled program trains every seed and setting of an experiment side by side.

Not a program. All arrays of a run (parameters, statistics, data, settings) have a leading axis of runs, and `vmap` does
the rest. A run's weights and batches come from its own seed and nothing else: runs of one seed start from the same
weights and see the same batches whatever else they differ in, so that comparisons are paired, and no other run changes
them.
"""

import functools
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import jaxnorm as jn

TRAIN = 897  # digits to train on where something is chosen: 450 are left to choose by


class Data(NamedTuple):
    """Training and test arrays, each with a leading axis of runs.

    And validation arrays: a learning rate that is chosen on the images it is reported on looks better than it is. None
    where nothing is chosen.
    """

    x: jax.Array
    y: jax.Array
    x_test: jax.Array
    y_test: jax.Array
    x_valid: jax.Array | None = None
    y_valid: jax.Array | None = None


def digits(seeds: Sequence[int], shape: tuple[int, ...] = (64,), train: int = 1347) -> Data:
    """scikit-learn's digits, pixels from 0 to 1, split anew by every seed.

    450 are for testing, `train` of the 1,347 others for training, and of what is left up to 450 for validation.
    """
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32).reshape(-1, *shape), labels.astype(np.int32)
    splits = []
    for seed in seeds:
        x, x_test, y, y_test = train_test_split(images, labels, test_size=450, stratify=labels, random_state=seed)
        spared = slice(train, train + 450)
        valid = (x[spared], y[spared]) if train < len(x) else ()
        splits.append((x[:train], y[:train], x_test, y_test, *valid))
    return Data(*(jnp.asarray(np.stack(part)) for part in zip(*splits, strict=True)))


# -- norms by name: apply(params, stats, x, training) -> (y, stats) ---------------------------------------------------


def init_norm(name: str, features: int):
    """Parameters and statistics; without a norm there is a bias, with one its scale and bias."""
    params = {"bias": jnp.zeros(features)} | ({} if name == "none" else {"scale": jnp.ones(features)})
    if name in ("tanh", "erf"):
        params |= {"alpha": jnp.full((), 0.5), "shift": jnp.zeros(())}
    return params, jn.RunningStats.init(features) if name in ("batch", "ghost", "renorm") else None


def norm(name: str, params, stats, x, training: bool, *, ghost_size: int = 8, momentum=0.9, epsilon=1e-5):
    scale, bias = params.get("scale"), params["bias"]
    if name == "none":
        return x + bias, stats
    if name in ("batch", "ghost"):
        options = {"momentum": momentum, "epsilon": epsilon, "ghost_size": ghost_size if name == "ghost" else None}
        return jn.batch_norm(x, stats, scale, bias, training=training, **options)
    if name == "renorm":
        # From batch norm to the paper's limits within a hundred updates, which the state counts.
        way = jnp.minimum(stats.count.mean() / 100, 1)
        limits = {"r_max": 1 + 2 * way, "d_max": 5 * way}
        return jn.batch_renorm(x, stats, scale, bias, training=training, momentum=momentum, **limits)
    if name == "tanh":
        return jn.dynamic_tanh(x, params["alpha"], scale, bias), stats
    if name == "erf":
        return jn.dynamic_erf(x, params["alpha"], params["shift"], scale, bias), stats
    if name == "layer":
        return jn.layer_norm(x, scale, bias), stats
    if name == "rms":
        return jn.rms_norm(x, scale) + bias, stats
    if name == "group":
        return jn.group_norm(x, scale, bias, group_size=8), stats
    if name == "instance":
        return jn.instance_norm(x, scale, bias), stats
    raise ValueError(f"norm: no norm of this name; got {name!r}.")


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """3 x 3, padded, as one matrix product over shifted copies, since `vmap` turns it into a batched product."""
    size, padded = x.shape[1:3], jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + size[0] : stride, j : j + size[1] : stride] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifted, -1) @ kernel


# -- training ---------------------------------------------------------------------------------------------------------


class Network(NamedTuple):
    """`init(key, setting) -> (params, stats)` and `apply(params, stats, x, training, key) -> (logits, stats)`."""

    init: Callable[..., Any]
    apply: Callable[..., Any]


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def sgd(setting) -> optax.GradientTransformation:
    """What most experiments train with, at the rate of the setting."""
    return optax.sgd(setting["rate"], momentum=0.9)


@functools.cache
def compiled(function: Callable, *fixed, donate_argnums: int | tuple[int, ...] = ()) -> Callable:
    """`function(*fixed, ...)` side by side for all runs, compiled once for trainers that share what is fixed.

    Small networks take longer to compile than to train: less effort there halves it, and they run as fast.
    """
    runs = jax.vmap(functools.partial(function, *fixed))
    return jax.jit(runs, donate_argnums=donate_argnums, compiler_options={"xla_backend_optimization_level": 1})


class Trainer:
    """Runs of one network with different seeds and settings.

    Args:
      network: the same for all runs.
      data: one set of arrays for each run.
      settings: a tree of arrays with a leading axis of runs; `network.init` and `optimizer` get one run's.
      seeds: one for each run, of its weights, batches and whatever else is random.
      optimizer: setting -> optax transformation.
      steps: how many make an epoch, each on images drawn without replacement; a pass over the images if None.
    """

    def __init__(
        self,
        network: Network,
        data: Data,
        settings,
        *,
        seeds: Sequence[int],
        optimizer=sgd,
        batch_size: int,
        steps: int | None = None,
    ):
        self.data, self.settings, self.seeds = data, settings, list(seeds)
        self.network, self.optimizer = network, optimizer
        self.batches = (steps or data.x.shape[1] // batch_size, batch_size)
        self.keys = jax.vmap(jax.random.key)(np.array(self.seeds, np.uint32))
        self._epoch = compiled(_epoch, network, optimizer, donate_argnums=0)
        self._evaluate = compiled(_evaluate, network)
        self.state = compiled(_start, network, optimizer)(self.keys, settings)
        self.epochs, self._losses = 0, []

    @property
    def steps_per_epoch(self) -> int:
        return self.batches[0]

    def epoch(self) -> np.ndarray:
        """One pass over the training data, or so many `steps`; returns the losses, [runs, steps]."""
        self.state, losses = self._epoch(self.state, self._batches(), self.data, self.settings)
        self.epochs += 1
        losses = np.asarray(losses)
        self._losses.append(losses.mean(1, dtype=np.float64))
        return losses

    @property
    def losses(self) -> np.ndarray:
        """The mean training loss of every epoch so far, [runs, epochs]."""
        return np.stack(self._losses, 1).round(5)

    def step_seconds(self, repeats: int = 30) -> float:
        """Seconds of one training step of the first run alone: the fastest epoch of several, without the shuffling.

        Compiled as anyone would: without `vmap`, with all of XLA's effort.
        """
        one = lambda tree: jax.tree.map(lambda leaf: jnp.array(leaf[0]), tree)
        epoch = jax.jit(functools.partial(_epoch, self.network, self.optimizer), donate_argnums=0)
        state, *rest = map(one, (self.state, self._batches(), self.data, self.settings))
        seconds = []
        for _ in range(1 + repeats):  # the first compiles
            start = time.perf_counter()
            state, _ = jax.block_until_ready(epoch(state, *rest))
            seconds.append(time.perf_counter() - start)
        return min(seconds) / self.steps_per_epoch

    def _batches(self):
        """Indices and random keys of an epoch. Shuffled here: XLA takes seconds to compile a random permutation."""
        count, used = self.data.x.shape[1], math.prod(self.batches)
        draw = lambda seed: np.random.default_rng([seed, self.epochs]).permutation(count)[:used]
        drawn = {seed: draw(seed) for seed in set(self.seeds)}
        order = np.stack([drawn[seed] for seed in self.seeds])
        keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, self.epochs), self.batches[0]))(self.keys)
        return order.reshape(-1, *self.batches), keys

    def evaluate(self, train: bool = True, on: Data | None = None) -> dict[str, np.ndarray]:
        """In inference mode: `loss` and `accuracy` on test images, `valid_loss`, `train_loss`...; each [runs]."""
        data = on or self.data
        data = data if train else data._replace(x=None, y=None)
        return {name: np.asarray(value) for name, value in self._evaluate(self.state, data).items()}


def _start(network, optimizer, key, setting):
    params, stats = network.init(key, setting)
    return params, stats, optimizer(setting).init(params)


def _epoch(network, optimizer, state, batches, data, setting):
    def step(state, batch):
        params, stats, opt_state = state
        indices, key = batch

        def loss(params):
            logits, new = network.apply(params, stats, data.x[indices], True, key)
            return cross_entropy(logits, data.y[indices]), new

        (value, stats), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer(setting).update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), stats, opt_state), value

    return jax.lax.scan(step, state, batches)


def _evaluate(network, state, data):
    params, stats, _ = state
    parts = {"": (data.x_test, data.y_test), "valid_": (data.x_valid, data.y_valid), "train_": (data.x, data.y)}
    parts = {prefix: (x, y) for prefix, (x, y) in parts.items() if x is not None}
    logits, _ = network.apply(params, stats, jnp.concatenate([x for x, _ in parts.values()]), False, None)
    result = {}
    for prefix, (x, y) in parts.items():
        part, logits = logits[: len(x)], logits[len(x) :]
        result[f"{prefix}loss"] = cross_entropy(part, y)
        result[f"{prefix}accuracy"] = jnp.mean(part.argmax(-1) == y)
    return result


def steps_to(goal: float, curve: np.ndarray, every: int, looks: int = 3) -> int | None:
    """Steps until a curve, looked at every so many steps, is at the goal for so many looks in a row; None for never."""
    if len(curve) < looks:  # a run that was interrupted
        return None
    held = np.lib.stride_tricks.sliding_window_view(curve >= goal, looks).all(1)
    return every * (1 + int(held.argmax())) if held.any() else None


def averages(losses: np.ndarray, parts: int = 20) -> np.ndarray:
    """The losses of every step, [runs, steps], averaged over so many stretches, for those that train one epoch."""
    stretches = np.array_split(losses, min(parts, losses.shape[1]), 1)
    return np.stack([stretch.mean(1, dtype=np.float64) for stretch in stretches], 1).round(5)


def trains(good: Sequence[bool]) -> slice:
    """The longest stretch of a grid that trains without a hole; of equals the first."""
    best, begin = slice(0, 0), 0
    for i, trained in enumerate([*good, False]):
        if not trained:
            if i - begin > best.stop - best.start:
                best = slice(begin, i)
            begin = i + 1
    return best


def grid_steps(good: Sequence[bool]) -> int:
    """How wide that is: a single point has no width."""
    stretch = trains(good)
    return max(stretch.stop - stretch.start - 1, 0)


def per_decade(grid: np.ndarray) -> float:
    """How many steps of an even grid over whole decades make one."""
    return (len(grid) - 1) / round(np.log10(grid[-1] / grid[0]))


# -- a perceptron, the network of most experiments --------------------------------------------------------------------


def perceptron(
    name: str, widths=(64, 100, 100, 100, 10), activation=jax.nn.relu, *, gain: float = 2.0, **norm_options
) -> Network:
    """Dense layers, a norm by name between product and activation. Weights have variance gain / fan-in.

    A setting may hold `init_scale`, which multiplies every weight.
    """

    def init(key, setting):
        layers, stats = [], []
        shapes = list(itertools.pairwise(widths))
        # One draw for all, since XLA takes a second to compile each.
        drawn = jax.random.normal(key, (sum(a * b for a, b in shapes),))
        for a, b in shapes:
            params, statistics = init_norm(name, b)
            kernel, drawn = drawn[: a * b].reshape(a, b), drawn[a * b :]
            kernel = kernel * jnp.sqrt(gain / a) * setting.get("init_scale", 1.0)
            layers.append({"kernel": kernel} | params)
            stats.append(statistics)
        layers[-1].pop("scale", None)
        return layers, stats[:-1]

    def apply(params, stats, x, training, key):
        new = []
        for layer, layer_stats in zip(params[:-1], stats, strict=True):
            x, layer_stats = norm(name, layer, layer_stats, x @ layer["kernel"], training, **norm_options)
            new.append(layer_stats)
            x = activation(x)
        return x @ params[-1]["kernel"] + params[-1]["bias"], new

    return Network(init, apply)
