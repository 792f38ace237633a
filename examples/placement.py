"""Placement: where does the norm go, before or after the activation, before or after the residual sum?

    python examples/placement.py [--epochs 8] [--windows 2400] [--seeds 3] [--seed 0] [--quick]

Convolutions: a small residual network (a first convolution, four blocks of two, 16 features) on 1,024 digits with batch
norm in three orders: conv-norm-ReLU as in ResNet (the last ReLU after the sum), conv-ReLU-norm, and norm-ReLU-conv as
in ResNet v2 (with one more norm and ReLU before the end). In a plain network the first and the last are one sequence,
cut elsewhere; around a residual sum they are not. SGD with momentum 0.9 over a range of learning rates. The best has
the highest median accuracy on 323 validation images; reported is accuracy on 450 others.

Transformers: four layers of width 32 on the text of `characters.py` with layer norm before attention and perceptron
(pre-norm) or after the sum (post-norm), at several learning rates, with warm-up over a quarter of the steps and
without; Adam, cosine decay. The best rate has the lowest median loss on validation text; reported is the loss on other
text, used neither to train nor to choose.

A difference counts if its median over seeds (the same weights and batches on both sides) is larger than a threshold,
one point of test accuracy or 0.02 nats per character, and larger than the spread: the range over seeds of the lower
side. Two orders both work well if no difference counts and both have a median of at least 90%. A transformer needs
warm-up if without it even the best rate's loss is higher than with it by a difference that counts. Else it needs
warm-up or another rate if the loss is so much higher at the same rate. Several rates may be as good as the best with
warm-up, in that no difference of validation losses counts; the same rate is the one of these with the lowest validation
loss without warm-up, so that no tie decides. It is as claimed if post-norm needs it and pre-norm does without, "in
part" if post-norm only needs more, at least another rate, and else not. Leaves results.json and placement.png in
runs/placement/.

Source: lessons 1 and 4 say where ResNet and ResNet v2 have their norms; the papers are He et al. 2015,
arXiv:1512.03385, section 3.4, and He et al. 2016, arXiv:1603.05027, figure 4. On transformers: Xiong et al. 2020,
arXiv:2002.04745.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiment import COLORS, at_least, middle, options, recording
from matplotlib import pyplot as plt
from networks import Network, Trainer, averages, convolve, digits, init_norm, norm
from transformer import frequency_loss, text, transformer

RESNET, AFTER, RESNET_2 = ORDERS = ("conv-norm-ReLU", "conv-ReLU-norm", "norm-ReLU-conv")
WHERE = {RESNET: "ResNet", AFTER: "what the lessons say of it", RESNET_2: "ResNet v2"}
PLACES = ("pre-norm", "post-norm")
CASES = [(place, warm_up) for place in PLACES for warm_up in (True, False)]
FEATURES, BLOCKS = 16, 4
RATES = tuple(np.logspace(-2.5, 0.5, 7).round(3).tolist())
TRANSFORMER_RATES = (1e-3, 2.5e-3, 6e-3, 1.5e-2, 4e-2, 1e-1)
CONTEXT, BATCH = 32, 8
POINT, NATS, GOOD = 0.01, 0.02, 0.9
NEEDS = ("does without", "needs it or another rate", "needs it")
Pair = tuple[np.ndarray, np.ndarray]


def residual(order: str) -> Network:
    """Blocks of two units around which x goes on; a unit is what the words of the order say."""
    words = order.split("-")

    def unit(params, stats, x, training, words, stride=1):
        for word in words:
            if word == "conv":
                x = convolve(x, params["kernel"], stride)
            elif word == "ReLU":
                x = jax.nn.relu(x)
            else:
                x, stats = norm("batch", params["norm"], stats, x, training)
        return x, stats

    def init(key, setting):
        keys = jax.random.split(key, 4)
        weights = lambda key, *shape: jax.random.normal(key, shape) * np.sqrt(2 / shape[-2])
        params, stats = init_norm("batch", FEATURES)
        stack = lambda tree: jax.tree.map(lambda a: jnp.broadcast_to(a, (BLOCKS, *a.shape)), tree)
        one, two = ({"kernel": weights(key, BLOCKS, 9 * FEATURES, FEATURES), "norm": stack(params)} for key in keys[:2])
        first = {"kernel": weights(keys[2], 9, FEATURES), "norm": params}
        last = {"kernel": weights(keys[3], FEATURES, 10), "bias": jnp.zeros(10), "norm": params}
        return (first, (one, two), last), (stats, (stack(stats), stack(stats)), stats)

    def apply(params, stats, x, training, key):
        def block(x, layer):
            (one, two), (one_stats, two_stats) = layer
            y, one_stats = unit(one, one_stats, x, training, words)
            y, two_stats = unit(two, two_stats, y, training, words[:-1] if order == RESNET else words)
            return jax.nn.relu(x + y) if order == RESNET else x + y, (one_stats, two_stats)

        (first, blocks, last), (first_stats, block_stats, last_stats) = params, stats
        x, first_stats = unit(first, first_stats, x, training, ["conv"] if order == RESNET_2 else words, stride=2)
        x, block_stats = jax.lax.scan(block, x, (blocks, block_stats))
        if order == RESNET_2:
            x, last_stats = unit(last, last_stats, x, training, words[:-1])
        return x.mean((1, 2)) @ last["kernel"] + last["bias"], (first_stats, block_stats, last_stats)

    return Network(init, apply)


def adam(setting):
    """Up to the rate in the steps of warm-up, and down to zero over all steps."""
    rise = lambda step: jnp.minimum(1, (step + 1) / setting["warm_up"])
    fall = lambda step: (1 + jnp.cos(jnp.pi * step / setting["steps"])) / 2
    return optax.adam(lambda step: setting["rate"] * rise(step) * fall(step))


def convolutions(record, seeds, *, epochs: int, images: int, rates) -> None:
    runs = [(seed, rate) for seed in seeds for rate in rates]
    own = [seed for seed, _ in runs]
    data = digits(own, (8, 8, 1), train=images)
    settings = {"rate": jnp.array([rate for _, rate in runs], jnp.float32)}
    for order in ORDERS:
        trainer = Trainer(residual(order), data, settings, seeds=own, batch_size=32)
        for _ in range(epochs):
            trainer.epoch()
            record.advance(order)
        found = trainer.evaluate(train=False)
        for i, (seed, rate) in enumerate(runs):
            scores = {"accuracy": found["accuracy"][i], "valid": found["valid_accuracy"][i]}
            record.add(order=order, seed=seed, rate=rate, **scores, losses=trainer.losses[i])


def transformers(record, seeds, *, windows: int, layers: int, width: int, rates) -> float:
    """Returns the loss of guessing by frequency."""
    runs = [(seed, rate, warm) for seed in seeds for rate in rates for warm in (True, False)]
    data = text(len(runs), CONTEXT, windows, test=200)
    steps = windows // BATCH
    settings = {
        "rate": jnp.array([rate for _, rate, _ in runs], jnp.float32),
        "warm_up": jnp.array([steps / 4 if warm else 1.0 for *_, warm in runs], jnp.float32),
        "steps": jnp.full(len(runs), float(steps)),
    }
    for place in PLACES:
        network = transformer("layer", width=width, layers=layers, context=CONTEXT, post=place == "post-norm")
        trainer = Trainer(network, data, settings, seeds=[seed for seed, *_ in runs], optimizer=adam, batch_size=BATCH)
        losses = averages(trainer.epoch())
        record.advance(place)
        # What diverged is the worst, not unknown.
        found = {name: np.nan_to_num(value, nan=np.inf) for name, value in trainer.evaluate(train=False).items()}
        for i, (seed, rate, warm) in enumerate(runs):
            scores = {"loss": found["loss"][i], "valid": found["valid_loss"][i]}
            record.add(place=place, seed=seed, rate=rate, warm_up=warm, **scores, losses=losses[i])
    return frequency_loss(data)


def extend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--epochs", type=at_least(1), default=8, help="passes of the convolutional networks over the images"
    )
    parser.add_argument("--windows", type=int, default=2400, help="windows of text for the transformers")


def main() -> None:
    chosen = options(__doc__, "placement", seeds=3, extend=extend)
    if chosen.windows < BATCH:
        raise SystemExit(f"placement: --windows must be at least {BATCH}, one batch; got {chosen.windows}.")
    seeds = list(range(chosen.seed, chosen.seed + chosen.seeds))
    epochs = 1 if chosen.quick else chosen.epochs
    with recording("placement", chosen, len(ORDERS) * epochs + len(PLACES)) as record:
        if chosen.quick:
            convolutions(record, seeds, epochs=1, images=128, rates=(0.1,))
            guess = transformers(record, seeds, windows=80, layers=2, width=16, rates=(1e-2,))
        else:
            convolutions(record, seeds, epochs=epochs, images=1024, rates=RATES)
            guess = transformers(record, seeds, windows=chosen.windows, layers=4, width=32, rates=TRANSFORMER_RATES)
        report_orders(record)
        report_places(record)
        picture(record, guess)


def at_best(record, key: str, sign: int, **where) -> tuple[float, np.ndarray]:
    """The learning rate with the best median over seeds on what is for validation, and the values on the test's."""
    best = record.best("rate", "valid", score=lambda valid: sign * np.median(valid), **where)
    return best, record.values(key, rate=best, **where)


def exceeds(high: np.ndarray, low: np.ndarray, threshold: float) -> bool:
    """Seed by seed: is the difference's median above the threshold, and above the range of the lower ones?"""
    return bool(np.median(high - low) > max(threshold, np.ptp(low)))


def report_orders(record) -> None:
    order = {name: at_best(record, "accuracy", 1, order=name) for name in ORDERS}
    rows = [(name, WHERE[name], f"{rate:g}", middle(100 * values)) for name, (rate, values) in order.items()]
    record.table("residual networks: median (range)", ("order", "in", "best rate", "test accuracy, %"), rows)

    percent = lambda name: f"{name} {middle(100 * order[name][1])}%"
    record.claim(
        "ResNet, ResNet v2 and modern architectures put the norm after the activation",
        source="lesson 1; lesson 4",
        measured=f"in the papers: {RESNET} (ResNet), {RESNET_2} (v2); here: {', '.join(map(percent, ORDERS))}",
        verdict="no: conv-BN-ReLU (He et al. 2015, arXiv:1512.03385), BN-ReLU-conv (He et al. 2016, arXiv:1603.05027)",
    )
    record.claim(
        "Before or after the activation: both usually work well",
        source="lesson 4",
        measured=", ".join(map(percent, (RESNET, AFTER))),
        verdict=work_well({name: order[name][1] for name in (RESNET, AFTER)}),
    )


def work_well(accuracy: dict[str, np.ndarray]) -> str:
    """Both?"""
    bad = [name for name, values in accuracy.items() if np.median(values) < GOOD]
    if bad:
        return f"no: {' and '.join(bad)} below {GOOD:.0%}"
    better = better_order(accuracy[RESNET], accuracy[AFTER])
    return f"{better} is better here" if better else "yes"


def better_order(resnet: np.ndarray, after: np.ndarray) -> str | None:
    return RESNET if exceeds(resnet, after, POINT) else AFTER if exceeds(after, resnet, POINT) else None


def report_places(record) -> None:
    place = {case: at_best(record, "loss", -1, place=case[0], warm_up=case[1]) for case in CASES}
    rows = [
        (name, "yes" if warm else "no", f"{rate:g}", middle(values)) for (name, warm), (rate, values) in place.items()
    ]
    columns = ("transformer", "warm-up", "best rate", "test loss, nats per character")
    record.table("transformers: median (range)", columns, rows)

    costs = {name: warm_up_costs(record, place, name) for name in PLACES}
    needs = {name: need(own, same) for name, (_, own, same) in costs.items()}
    added = lambda without, warm: f"{np.median(without - warm):+.3f}"
    record.claim(
        "A post-norm transformer needs warm-up, a pre-norm one does not",
        source="Xiong et al. 2020, arXiv:2002.04745",
        measured="; ".join(
            f"{name}: {middle(own[1])} nats with warm-up, without it {added(*own)} at its own best rate and "
            f"{added(*same)} at {rate:g}, the same"
            for name, (rate, own, same) in costs.items()
        ),
        verdict=f"{answer(needs)}: " + ", ".join(f"{name} {needs[name]}" for name in PLACES),
    )


def need(own: Pair, same: Pair) -> str:
    """By the losses without warm-up and with it: each at its own best rate, and both at the same."""
    return NEEDS[2 if exceeds(*own, NATS) else 1 if exceeds(*same, NATS) else 0]


def answer(needs: dict[str, str]) -> str:
    post, pre = (NEEDS.index(needs[name]) for name in ("post-norm", "pre-norm"))
    if post <= pre:  # the same, or the opposite
        return "no"
    return "yes" if (post, pre) == (len(NEEDS) - 1, 0) else "in part"


def warm_up_costs(record, place, name: str) -> tuple[float, Pair, Pair]:
    """The same rate; and the losses of every seed without and with warm-up, each at its own best and at the same."""
    rates = sorted({*record.values("rate", place=name)})
    values = lambda key, warm, rate: record.values(key, place=name, warm_up=warm, rate=rate)
    warm, without = ({rate: values("valid", on, rate) for rate in rates} for on in (True, False))
    rate = least_sensitive(place[name, True][0], warm, without)
    own = place[name, False][1], place[name, True][1]
    return rate, own, (values("loss", False, rate), values("loss", True, rate))


def least_sensitive(best: float, warm: dict[float, np.ndarray], without: dict[float, np.ndarray]) -> float:
    """Of the rates that are as good as the best with warm-up, the one that is best without it."""
    good = [rate for rate in warm if not exceeds(warm[rate], warm[best], NATS)]
    return min(good, key=lambda rate: np.median(without[rate]))


def picture(record, guess: float) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")

    def draw(axes, label: str, key: str, factor: float, color: str, style: str = "-", **where) -> None:
        rates = sorted({row["rate"] for row in record.rows if all(row.get(k) == v for k, v in where.items())})
        values = factor * np.array([record.values(key, rate=rate, **where) for rate in rates])
        axes.fill_between(rates, values.min(1), values.max(1), color=color, alpha=0.15)
        axes.plot(rates, np.median(values, 1), color=color, linestyle=style, marker="o", markersize=3, label=label)

    for name, color in zip(ORDERS, COLORS, strict=False):
        draw(left, name, "accuracy", 100, color, order=name)
    for name, warm in CASES:
        label, style = (f"{name}, warm-up", "-") if warm else (f"{name}, no warm-up", "--")
        draw(right, label, "loss", 1, COLORS[3 + PLACES.index(name)], style, place=name, warm_up=warm)
    right.axhline(guess, color="gray", linestyle=":", label="guessing by frequency")
    right.set_ylim(top=min(right.get_ylim()[1], guess + 0.2))  # what diverged is out of the picture
    left.set(xscale="log", xlabel="learning rate", ylabel="test accuracy, %", title="residual network, batch norm")
    right.set(xscale="log", xlabel="learning rate", ylabel="test loss, nats per character")
    right.set_title("transformer, layer norm")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle("median and range of the seeds")
    record.picture(figure)


if __name__ == "__main__":
    main()
