"""Fused kernels behind the norms, and the word on which of them are here."""

from jaxnorm.kernels import library


def implementations() -> dict[str, str]:
    """Which ways of computing a norm are here, and what each serves, or why it cannot.

        "cpu": compiled kernels of this package        "xla": JAX's own compiler

    Args:
      (none)

    Returns:
      A dict from the names that `implementation=` takes to a sentence. "xla" serves everything, everywhere. "cpu"
      serves float32, bfloat16, float16 and float64 on the CPU where no mask and no axis name is given; without
      `implementation=` it is chosen wherever it serves. `JAXNORM_KERNELS=off` in the environment, before the first
      norm, switches it off.

    Raises:
      ValueError: `JAXNORM_KERNELS` is set to anything but on and off.

    Example:
      >>> import jaxnorm as jn
      >>> jn.implementations()["xla"]
      'serves every norm on every platform, by the formulas'

    Reference: XLA's foreign function interface, docs.jax.dev/en/latest/ffi.html.
    """
    missing = library.missing()
    cpu = "serves layer, RMS, batch, ghost batch, group and instance norm on the CPU, real numbers, none masked"
    return {
        "cpu": cpu if missing is None else f"not available: {missing}",
        "xla": "serves every norm on every platform, by the formulas",
    }
