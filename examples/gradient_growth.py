"""Batch norm makes the gradients of a plain ReLU network explode: by sqrt(pi / (pi - 1)) = 1.2112 per layer.

    python examples/gradient_growth.py [--depth 40] [--seeds 5] [--seed 0] [--quick]

Yang et al. 2019 (arXiv:1902.08129) for networks at initialization, infinitely wide, in infinitely large batches; width
first. In short, for z = norm(h), h' = relu(z) W, and W of variance g / width:

    on the way back   ReLU lets half of the squared gradient pass, W multiplies it by g, the norm divides it by var(h')
    batch norm        subtracts a unit's mean over the batch; after many layers samples are like independent normals, so
                      var(h') = g (E relu(z)^2 - (E relu(z))^2) = g (1/2 - 1/(2 pi)): the product is pi / (pi - 1)
    layer, RMS norm   divide by the mean square of a sample's units, g / 2: the product is 1
    none              He's g = 2 makes it 1

Measured: the norm of the gradient of a random linear function of the output with respect to what each layer puts out,
for normal inputs; the slope of its logarithm over the layers, without the first ten and the last five. Samples are as
independent as there are units to tell them apart, so width must exceed the batch: where it does not, growth is slower.

Verdict: "yes" if, in the network that is widest beside its batch (the largest width / batch), the median of the seeds
is within 1% of the theory. What was found is in examples/README.md.

What it does to "even 50 layers train smoothly" (lesson 2, experiment 3) is measured by `very_deep.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from experiment import COLORS, at_least, options, recording
from matplotlib import pyplot as plt
from networks import init_norm, norm

THEORY = {"none": 1.0, "batch": float(np.sqrt(np.pi / (np.pi - 1))), "layer": 1.0, "rms": 1.0}
SIZES = ((128, 512), (128, 128), (256, 256), (512, 512), (512, 256), (1024, 256))  # width, batch


def main() -> None:
    chosen = options(
        __doc__,
        "gradient_growth",
        extend=lambda parser: parser.add_argument(
            "--depth", type=at_least(25), default=40, help="layers, 15 not counted"
        ),
    )
    sizes = SIZES[:2] if chosen.quick else SIZES
    cases = [("batch", *size) for size in sizes] + [(name, *sizes[-1]) for name in THEORY if name != "batch"]
    with recording("gradient_growth", chosen, len(cases) * chosen.seeds) as record:
        for name, width, batch in cases:
            for seed in range(chosen.seed, chosen.seed + chosen.seeds):
                by_layer = np.asarray(gradient_norms(jax.random.key(seed), name, width, batch, chosen.depth))
                slope = np.polyfit(np.arange(10, chosen.depth - 5), np.log(by_layer[10:-5]), 1)[0]
                growth = float(np.exp(-slope))
                record.add(norm=name, width=width, batch=batch, seed=seed, growth=growth, gradients=by_layer)
                record.advance(f"{name}, width {width}")
        report(record, cases)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def gradient_norms(key, name: str, width: int, batch: int, depth: int) -> jax.Array:
    """With respect to the output of every layer; what is added to the outputs is zero, and only there for that."""
    weights, inputs, cotangents = jax.random.split(key, 3)
    kernels = jax.random.normal(weights, (depth, width, width)) * jnp.sqrt(2 / width)
    x, cotangent = jax.random.normal(inputs, (batch, width)), jax.random.normal(cotangents, (batch, width))
    params, _ = init_norm(name, width)

    def output(added):
        def layer(x, kernel_and_added):
            kernel, added = kernel_and_added
            return jax.nn.relu(norm(name, params, None, x, True)[0]) @ kernel + added, None

        return jnp.vdot(jax.lax.scan(layer, x, (kernels, added))[0], cotangent)

    return jnp.linalg.norm(jax.grad(output)(jnp.zeros((depth, batch, width))), axis=(1, 2))


def four_digits(values: np.ndarray) -> str:
    return f"{np.median(values):.4f} ({values.min():.4f} to {values.max():.4f})"


def as_theory(growth: float) -> str:
    return "yes" if abs(growth / THEORY["batch"] - 1) < 0.01 else "no"


def report(record, cases) -> None:
    growth = {
        case: record.values("growth", **dict(zip(("norm", "width", "batch"), case, strict=True))) for case in cases
    }
    rows = [
        (name, width, batch, four_digits(values), f"{THEORY[name]:.4f}", f"{np.median(values) / THEORY[name] - 1:+.2%}")
        for (name, width, batch), values in growth.items()
    ]
    columns = ("norm", "width", "batch", "growth per layer", "theory", "median off by")
    record.table("how much a gradient grows on its way back through one plain layer", columns, rows)
    # Nearest to the theory's order of limits: of all, the widest beside its batch.
    widest = max((case for case in cases if case[0] == "batch"), key=lambda case: case[1] / case[2])
    measured = float(np.median(growth[widest]))
    record.claim(
        "Batch norm with ReLU multiplies gradients by sqrt(pi / (pi - 1)) = 1.2112 per plain layer",
        source="Yang et al. 2019, arXiv:1902.08129",
        measured=f"{four_digits(growth[widest])} at width {widest[1]}, "
        f"batches of {widest[2]}: {measured**50:,.0f} times in 50 layers, {measured**100:.1g} in 100",
        verdict=as_theory(measured),
    )
    figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, color in zip(THEORY, COLORS, strict=False):
        gradients = record.values("gradients", norm=name, width=widest[1], batch=widest[2])
        if len(gradients):
            from_output = np.arange(gradients.shape[1])
            relative = np.median(gradients / gradients[:, -1:], 0)[::-1]
            ax.plot(from_output, relative, color=color, label=name)
    ax.plot(from_output, THEORY["batch"] ** from_output, "k:", label="1.2112 per layer")
    ax.set(yscale="log", xlabel="layers from the output", ylabel="norm of the gradient, over the last layer's")
    ax.set_title(f"plain ReLU networks at initialization, width {widest[1]}")
    ax.legend()
    record.picture(figure)


if __name__ == "__main__":
    main()
