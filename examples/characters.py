"""Characters: which norm for text? A small causal transformer that predicts the next character.

    python examples/characters.py [--windows 2400] [--seeds 3] [--seed 0] [--quick]

The text is Python's own language reference, which every installation carries (`pydoc_data.topics`). Two layers of width
64 with the norm before attention and perceptron (pre-norm), windows of 64 characters, 8 in a batch, one pass, Adam with
warm-up and cosine decay. Layer, RMS, batch and no norm, each at the best of three learning rates by its median loss on
validation text; reported is the loss on other text, which was used neither to train nor to choose, in nats per
character.

Batch norm shares statistics over batch and time. While it trains, a prediction therefore depends on the characters that
are to be predicted: how much is measured by changing the last character of each window and looking at the predictions
before it. In inference running statistics end that, and what this change of statistics costs is the loss in both modes.
Two norms count as equally good if the median over seeds of the difference is within 0.02 nats. A norm shows the future
if in every seed a later character moves earlier log-odds by more than 0.001, and does not if in no seed; running
statistics cost something if the median over seeds is above 0.02 nats. Each row has the training loss of 20 stretches.
Leaves results.json and characters.png in runs/characters/.

Source: lessons 1 and 2 recommend layer norm for text; Shen et al. 2020, arXiv:2003.07845, on batch norm in language.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from experiment import COLORS, middle, options, recording
from matplotlib import pyplot as plt
from networks import Trainer, averages, compiled, cross_entropy
from transformer import ALPHABET, frequency_loss, text, transformer

NORMS = ("layer", "rms", "batch", "none")
RATES = (3e-3, 1e-2, 3e-2)
CONTEXT, BATCH, CLOSE = 64, 8, 0.02


def adam(setting):
    """Up to the rate in a tenth of the steps, then down to zero."""
    steps = setting["steps"]
    rise = lambda step: jnp.minimum(1, (step + 1) / (0.1 * steps))
    return optax.adam(lambda step: setting["rate"] * rise(step) * (1 + jnp.cos(jnp.pi * step / steps)) / 2)


def predict(network, state, x, training: bool):
    """Logits of batches of windows, [batches, windows, time, characters]: each by its own statistics in training."""
    params, stats, _ = state
    return jax.vmap(lambda x: network.apply(params, stats, x, training, None)[0])(x)


def measure(network, state, data) -> dict[str, jax.Array]:
    """Test loss in both modes, validation loss; and the largest change in log-odds before a changed last character."""
    batches = lambda a: a.reshape(-1, BATCH, CONTEXT)
    x, y, x_valid, y_valid = map(batches, data[2:])
    entropy = lambda x, y, training: cross_entropy(predict(network, state, x, training), y)
    loss = {
        "loss": entropy(x, y, False),
        "train_mode": entropy(x, y, True),
        "valid": entropy(x_valid, y_valid, False),
    }
    loss = {name: jnp.nan_to_num(value, nan=jnp.inf) for name, value in loss.items()}  # the worst
    other = x[:1].at[..., -1].set((x[:1, ..., -1] + 1) % len(ALPHABET))
    change = predict(network, state, x[:1], True) - predict(network, state, other, True)
    return loss | {"leak": jnp.abs(change[..., :-1, :]).max()}


def main() -> None:
    chosen = options(
        __doc__,
        "characters",
        seeds=3,
        extend=lambda parser: parser.add_argument(
            "--windows", type=int, default=2400, help="how many windows to train on"
        ),
    )
    windows, tests, rates, layers, width = chosen.windows, 200, RATES, 2, 64
    if chosen.quick:
        windows, tests, rates, layers, width = 80, 8, (1e-2,), 1, 16
    if windows < BATCH:
        raise SystemExit(f"characters: --windows must be at least {BATCH}, one batch; got {windows}.")
    runs = [(seed, rate) for seed in range(chosen.seed, chosen.seed + chosen.seeds) for rate in rates]
    seeds = [seed for seed, _ in runs]
    with recording("characters", chosen, len(NORMS)) as record:
        data = text(len(runs), CONTEXT, windows, tests)
        settings = {
            "rate": jnp.array([rate for _, rate in runs], jnp.float32),
            "steps": jnp.full(len(runs), float(windows // BATCH)),
        }
        for name in NORMS:
            network = transformer(name, width=width, layers=layers, context=CONTEXT)
            trainer = Trainer(network, data, settings, seeds=seeds, optimizer=adam, batch_size=BATCH)
            losses = averages(trainer.epoch())
            numbers = compiled(measure, network)(trainer.state, data)
            for i, (seed, rate) in enumerate(runs):
                values = {key: float(value[i]) for key, value in numbers.items()}
                record.add(norm=name, seed=seed, rate=rate, **values, losses=losses[i])
            record.advance(name)
        report(record, rates, frequency_loss(data))


def report(record, rates, guess: float) -> None:
    loss = {(name, rate): record.values("loss", norm=name, rate=rate) for name in NORMS for rate in rates}
    best = {name: record.best("rate", "valid", score=lambda valid: -np.median(valid), norm=name) for name in NORMS}
    at_best = lambda key, name: record.values(key, norm=name, rate=best[name])
    rows = [
        (name, f"{best[name]:g}", *(middle(at_best(key, name)) for key in ("loss", "train_mode", "leak")))
        for name in NORMS
    ]
    rows.append(("guessing by frequency", "", f"{guess:.3g}", "", ""))
    columns = ("norm", "best rate", "test loss", "with the batch's own statistics", "sees the future by")
    record.table("nats per character, and log-odds changed by a later character: median (range)", columns, rows)
    picture(record, loss, at_best, guess, rates)

    record.claim(
        "Text and language: use layer norm",
        source="lesson 1; lesson 2",
        measured="test loss " + ", ".join(f"{name} {middle(at_best('loss', name))}" for name in NORMS),
        verdict=for_text({name: at_best("loss", name) for name in NORMS}),
    )
    leaks = {name: at_best("leak", name) for name in NORMS}
    record.claim(
        "Batch norm shows a causal model the future while it trains; layer norm does not",
        source="asked here; of contrastive learning He et al. 2020, arXiv:1911.05722, section 3.3",
        measured="a later character moves earlier log-odds by up to "
        + ", ".join(f"{middle(leaks[name])} ({name})" for name in ("batch", "layer")),
        verdict=shows_future(leaks),
    )
    cost = at_best("loss", "batch") - at_best("train_mode", "batch")
    record.claim(
        "The statistics of text vary so much that batch norm loses at inference",
        source="Shen et al. 2020, arXiv:2003.07845",
        measured=f"running statistics instead of the batch's change its loss by {middle(cost)}",
        verdict=loses_at_inference(cost),
    )


def for_text(loss: dict[str, np.ndarray]) -> str:
    """Layer norm, by the losses of all norms, seed by seed; RMS norm is of its kind."""
    first = min(loss, key=lambda name: np.median(loss[name]))
    behind = {name: np.median(values - loss[first]) for name, values in loss.items()}
    if behind["layer"] > CLOSE:
        return f"no: {first} is better"
    equal = [name for name in ("batch", "none") if behind[name] <= CLOSE]
    return f"not for its loss: {' and '.join(equal)} as good" if equal else "yes"


def shows_future(leaks: dict[str, np.ndarray]) -> str:
    seen = {name: values > 1e-3 for name, values in leaks.items()}
    if not seen["batch"].all():
        return "no"
    others = [name for name in leaks if name != "batch" and seen[name].any()]
    return f"it does, and so does {', '.join(others)}" if others else "yes"


def loses_at_inference(cost: np.ndarray) -> str:
    return "yes" if np.median(cost) > CLOSE else "not here"


def picture(record, loss, at_best, guess: float, rates) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for i, (name, color) in enumerate(zip(NORMS, COLORS, strict=False)):
        values = np.array([loss[name, rate] for rate in rates])
        left.fill_between(rates, values.min(1), values.max(1), color=color, alpha=0.15)
        left.plot(rates, np.median(values, 1), color=color, marker="o", label=name)
        for key, shift, marker in (("loss", -0.1, "o"), ("train_mode", 0.1, "s")):
            low, mid, high = np.percentile(at_best(key, name), (0, 50, 100))
            bars = [[mid - low], [high - mid]]
            right.errorbar(i + shift, mid, bars, color=color, marker=marker, mfc="white" if marker == "s" else color)
    left.axhline(guess, color="gray", linestyle=":", label="guessing by frequency")
    left.set_ylim(top=min(left.get_ylim()[1], guess + 0.2))  # what diverged is out of the picture
    left.set(xscale="log", xlabel="learning rate", ylabel="test loss, nats per character")
    left.set_title("median and range of the seeds")
    left.set_xticks(rates, [f"{rate:g}" for rate in rates])
    left.minorticks_off()
    left.legend()
    right.set_xticks(range(len(NORMS)), NORMS)
    right.set(xlabel="norm", ylabel="test loss at the best rate, nats per character")
    right.set_title("circle: inference; square: own statistics")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    record.picture(figure)


if __name__ == "__main__":
    main()
