"""The flower challenge's network in Flax Linen, and one training run of it.

Not a program. Runs follow each other in a Python loop: on a processor XLA's convolutions are fast with one set of
weights, and several times slower inside `scan`. What is compiled depends on few choices, so most runs share it.
"""

import functools
import itertools
import time
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxnorm as jn
import jaxnorm.linen as jnl
from jaxnorm.fold import fold_batch_norm

BATCH = 64
MOMENTA = (0.9, 0.99, 0.999)  # of the running averages that every run keeps; the strategy's first
EVALUATIONS = 4  # in an epoch
TOGETHER = 500  # test images
RECALIBRATION = 32  # batches
REPEATS = 5  # of a timed inference


class Data(NamedTuple):
    """Images [count, height, width, 3] in float32 from 0 to 1, and labels [count] in int32."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    x_valid: np.ndarray
    y_valid: np.ndarray

    def for_choosing(self) -> "Data":
        """With the validation images in the place of the test images."""
        return self._replace(x_test=self.x_valid, y_test=self.y_valid)


class Choices(NamedTuple):
    """One way to train. The defaults are the strategy but for the rate, which is swept."""

    order: str = "norm-relu"  # what follows a convolution: "norm-relu", "relu-norm", or "none": bias and ReLU
    zero_last: bool = True  # a branch starts at zero by its last scale
    spare_norms: bool = True  # no weight decay on scales and biases
    warm_up: float = 0.2  # epochs in which the rate climbs from zero
    optimizer: str = "sgd"  # with Nesterov momentum; or "adam"
    rate: float = 0.3  # the highest; it falls to zero along a cosine


class Network(nn.Module):
    """Three halvings of the image, a residual branch, the mean over space, one dense layer.

    Its norms have momentum 0: they hand out each batch's own statistics, and `_step` averages them with
    several momenta. Outside of an experiment write `momentum=0.9` and keep what comes back.
    """

    classes: int
    order: str
    zero_last: bool = True

    @nn.compact
    def __call__(self, x, training: bool):
        x = 4 * x - 2
        for features in (12, 24, 40):
            x = self.unit(x, features, training, stride=2)
        branch = self.unit(self.unit(x, 40, training), 40, training, last=True)
        x = x + branch if self.order == "relu-norm" else nn.relu(x + branch)
        return nn.Dense(self.classes)(x.mean((1, 2)))

    def unit(self, x, features: int, training: bool, *, stride: int = 1, last: bool = False):
        """A convolution and what follows it. A branch's `last` leaves a closing ReLU to the sum."""
        zeros, he = nn.initializers.zeros, nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        normalized = self.order != "none"
        x = nn.Conv(features, (3, 3), (stride, stride), use_bias=not normalized, kernel_init=he)(x)
        if self.order == "relu-norm":
            x = nn.relu(x)
        if normalized:
            scale = zeros if last and self.zero_last else nn.initializers.ones
            x = jnl.BatchNorm(use_running_average=not training, momentum=0.0, scale_init=scale)(x)
        return x if last or self.order == "relu-norm" else nn.relu(x)


class Run(NamedTuple):
    """What one training left, and what was seen on the way: at every evaluation, but for the losses."""

    network: Network
    params: Any
    averages: tuple[Any, ...]  # one tree of running statistics for each of MOMENTA; none without norms
    steps: list[int]
    accuracy: list[float]
    seconds: list[float]  # of training alone
    losses: list[float]


def train(data: Data, choices: Choices, *, epochs: int, seed: int) -> Run:
    """From first weights to last; `seed` decides weights and batches."""
    classes = 1 + max(int(labels.max()) for labels in (data.y, data.y_test))
    network = Network(classes, choices.order, choices.zero_last)
    key = jax.random.key(seed, impl="rbg")  # compiles in a tenth of the time
    variables = network.init(key, data.x[:2], training=True)
    params, stats = variables["params"], variables.get("batch_stats")
    averages = () if stats is None else tuple(jax.tree.map(jnp.copy, stats) for _ in MOMENTA)  # donated, each by itself
    memory = _optimizer(choices.optimizer, choices.spare_norms, 0.0).init(params)
    # How weights began is no matter from here on: one compiled program for both.
    network = network.clone(zero_last=True)
    run = Run(network, params, averages, [], [], [], [])
    per_epoch = len(data.x) // BATCH
    total, pause = epochs * per_epoch, max(1, per_epoch // EVALUATIONS)
    losses, seconds, start = [], 0.0, time.perf_counter()
    step = functools.partial(_step, network, choices.optimizer, choices.spare_norms)
    rates = _rates(choices, total, per_epoch)
    for i, batch in enumerate(_batches(data, epochs, seed)):
        (params, memory, averages), loss = step((params, memory, averages), data.x[batch], data.y[batch], rates[i])
        losses.append(loss)
        if (i + 1) % pause == 0 or i + 1 == total:
            jax.block_until_ready(params)
            seconds += time.perf_counter() - start
            run.steps.append(i + 1)
            run.seconds.append(seconds)
            run.accuracy.append(accuracy(network, params, averages[0] if averages else None, data))
            start = time.perf_counter()
    run.losses.extend(map(float, losses))
    return run._replace(params=params, averages=averages)


def accuracy(network: Network, params, stats, data: Data) -> float:
    """On test images, in inference mode with these running statistics."""
    parts = [slice(i, i + TOGETHER) for i in range(0, len(data.x_test), TOGETHER)]
    right = [_right(network, params, stats, data.x_test[part], data.y_test[part]) for part in parts]
    return int(sum(right)) / len(data.x_test)


def recalibrated(run: Run, data: Data):
    """Running statistics of the final weights: pooled moments of training batches, instead of a moving average."""
    batches = (data.x[batch] for batch in itertools.islice(_batches(data, 1, seed=0), RECALIBRATION))
    pooled = jn.recalibrate(functools.partial(_moments, run.network, run.params, run.averages[0]), batches)
    return jax.tree.map(lambda m: {"mean": m.mean, "var": m.var}, pooled, is_leaf=lambda m: isinstance(m, jn.Moments))


def folded(run: Run, stats, data: Data) -> dict[str, float]:
    """The strategy's network beside the one without norms that its folded parameters make, on the test images."""
    plain = run.network.clone(order="none")
    params = {"Dense_0": run.params["Dense_0"]}
    for i in range(len(stats)):
        norm = run.params[f"BatchNorm_{i}"]
        state = jn.RunningStats(**stats[f"BatchNorm_{i}"], count=jnp.ones_like(norm["scale"]))
        kernel, bias = fold_batch_norm(run.params[f"Conv_{i}"]["kernel"], None, state, norm["scale"], norm["bias"])
        params[f"Conv_{i}"] = {"kernel": kernel, "bias": bias}
    ways = [lambda x: _logits(run.network, run.params, stats, x), lambda x: _logits(plain, params, None, x)]
    x = data.x_test[:TOGETHER]
    logits, seconds = [np.asarray(way(x)) for way in ways], [[], []]
    for _ in range(REPEATS):
        for way, taken in zip(ways, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(way(x))
            taken.append(time.perf_counter() - start)
    return {
        "gap": float(np.abs(logits[0] - logits[1]).max() / np.abs(logits[0]).max()),
        "answers": int((logits[0].argmax(-1) != logits[1].argmax(-1)).sum()),
        "seconds": float(np.median(seconds[1]) / np.median(seconds[0])),
    }


def _batches(data: Data, epochs: int, seed: int):
    """Every epoch in an order of its own; the images that fill no batch are left out."""
    rng = np.random.default_rng(seed)
    for _ in range(epochs):
        order = rng.permutation(len(data.x))
        yield from (order[i : i + BATCH] for i in range(0, len(order) - BATCH + 1, BATCH))


def _rates(choices: Choices, total: int, per_epoch: int) -> np.ndarray:
    warm_up = round(choices.warm_up * per_epoch)
    schedule = optax.warmup_cosine_decay_schedule(0.0 if warm_up else choices.rate, choices.rate, warm_up, total)
    return np.asarray(schedule(np.arange(total) + 1), np.float32)


def _optimizer(name: str, spare_norms: bool, rate):
    mask = jn.decay_mask if spare_norms else None
    if name == "adam":
        return optax.adamw(rate, weight_decay=0.01, mask=mask)
    return optax.chain(optax.add_decayed_weights(5e-4, mask), optax.sgd(rate, momentum=0.9, nesterov=True))


def _variables(params, stats):
    return {"params": params} if stats is None else {"params": params, "batch_stats": stats}


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _step(network: Network, optimizer: str, spare_norms: bool, state, x, y, rate):
    """Parameters, the optimizer's memory and running averages after this batch, and its loss."""
    params, memory, averages = state

    def loss(params):
        variables = _variables(params, next(iter(averages), None))
        logits, updated = network.apply(variables, x, training=True, mutable=["batch_stats"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updated.get("batch_stats")

    (value, own), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    # optax's step size is the weight of the new.
    averages = [optax.incremental_update(own, old, 1 - m) for old, m in zip(averages, MOMENTA, strict=False)]
    updates, memory = _optimizer(optimizer, spare_norms, rate).update(gradients, memory, params)
    return (optax.apply_updates(params, updates), memory, tuple(averages)), value


@functools.partial(jax.jit, static_argnums=0)
def _right(network: Network, params, stats, x, y):
    return jnp.sum(network.apply(_variables(params, stats), x, training=False).argmax(-1) == y)


@functools.partial(jax.jit, static_argnums=0)
def _logits(network: Network, params, stats, x):
    return network.apply(_variables(params, stats), x, training=False)


@functools.partial(jax.jit, static_argnums=0)
def _moments(network: Network, params, stats, x):
    """The batch's own moments at every norm; its weight among the others is its number of images."""
    _, updated = network.apply(_variables(params, stats), x, training=True, mutable=["batch_stats"])
    moments = lambda own: jn.Moments(own["mean"], own["var"], jnp.full_like(own["mean"], len(x)))
    return jax.tree.map(moments, updated["batch_stats"], is_leaf=lambda node: "mean" in node)
