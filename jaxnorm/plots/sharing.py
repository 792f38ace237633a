"""Which numbers share statistics, asked of the norms themselves and drawn as blocks."""

import os
from collections.abc import Callable

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from jaxnorm.norms.batch import batch_norm
from jaxnorm.norms.group import group_norm, instance_norm
from jaxnorm.norms.layer import layer_norm

SHAPE = (4, 4, 6)  # batch, space, features: unequal to the groups and ghosts below, small enough for a Jacobian
NORMS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "batch_norm(x, ...)": lambda x: batch_norm(x, None, training=True)[0],
    "batch_norm(x, ..., ghost_size=2)": lambda x: batch_norm(x, None, training=True, ghost_size=2)[0],
    "layer_norm(x)": layer_norm,
    "layer_norm(x, axis=(1, 2))": lambda x: layer_norm(x, axis=(1, 2)),
    "group_norm(x, num_groups=2)": lambda x: group_norm(x, num_groups=2),
    "instance_norm(x)": instance_norm,
}
SHARED, OTHER, EDGE = "#0072b2", "#eceff1", "#90a4ae"


def sharing_sets(norm: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]) -> np.ndarray:
    """Label every entry of an array of this shape by the set whose statistics normalize it.

        label[i] = label[j]   exactly where   d norm(x)[i] / dx[k] != 0 for the same entries k as d norm(x)[j] / dx[k]

    An output depends on an input through their common statistics and on itself, so the pattern of zeros in the
    Jacobian is the sharing, whatever the norm's arguments are called. (Where two numbers share, they are normalized to
    plus and minus one whatever they were: sets of two look like sets of one.)

    Args:
      norm: from an array of `shape` to one of the same shape.
      shape: of the array; its Jacobian has the square of its size.

    Returns:
      Integers of `shape`: 0 for the set of the first entry, and on in the order in which sets begin.

    Raises:
      ValueError: norm changes the shape.

    Example:
      >>> from jaxnorm import layer_norm
      >>> sharing_sets(layer_norm, (2, 3))
      array([[0, 0, 0],
             [1, 1, 1]])

    Reference: the question, and its picture as blocks, are figure 2 of Wu & He 2018, arXiv:1803.08494.
    """
    x = jax.random.normal(jax.random.key(0), shape)
    jacobian = np.asarray(jax.jacobian(norm)(x))
    if jacobian.shape != (*shape, *shape):
        got = f"{jacobian.shape[: -len(shape)]} from {shape}"
        raise ValueError(f"sharing_sets: `norm` must keep the shape; got {got}. Wrap it to return y alone.")
    depends = jacobian.reshape(x.size, x.size) != 0
    _, first, label = np.unique(depends, axis=0, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[label].reshape(shape)


def sharing_picture(path: str | os.PathLike) -> Figure:
    """Draw which numbers share statistics, for batch, ghost batch, layer, group and instance norm.

    Each block is an array x of batch by space by features. Blue are the numbers that share their statistics with the
    one at the nearest corner, as `sharing_sets` finds them: the picture is the library's answer, not ours.

    Args:
      path: the picture to write; its ending decides the format (.png, .svg, .pdf).

    Returns:
      The matplotlib Figure, closed to pyplot and open to `savefig`.

    Raises:
      OSError: the path cannot be written.

    Example:
      >>> import os, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     figure = sharing_picture(os.path.join(folder, "sharing.png"))
      >>> print(figure.axes[4].get_title())
      group_norm(x, num_groups=2)
      8 sets of 12 numbers

    Reference: Wu & He 2018, arXiv:1803.08494, figure 2.
    """
    figure, axes = plt.subplots(2, 3, figsize=(10, 6.8), subplot_kw={"projection": "3d"})
    figure.subplots_adjust(left=0.02, right=1, bottom=0.02, top=0.92, wspace=0, hspace=0.1)
    try:
        for ax, (call, norm) in zip(axes.flat, NORMS.items(), strict=True):
            sets = sharing_sets(norm, SHAPE)
            draw_block(ax, sets == 0)
            numbers = f"{sets.max() + 1} sets of {np.count_nonzero(sets == 0)} numbers"
            ax.set_title(f"{call}\n{numbers}", fontsize=11, y=0.93)
        figure.savefig(path, dpi=150, facecolor="white")
    finally:
        plt.close(figure)
    return figure


def draw_block(ax: Axes3D, shared: np.ndarray) -> None:
    """One array as cubes: features to the right, batch to the back, space downwards from the nearest corner."""
    cubes = shared.transpose(2, 0, 1)[:, :, ::-1]
    batch, space, features = shared.shape
    colors = np.where(cubes, SHARED, OTHER)
    ax.voxels(np.ones_like(cubes), facecolors=colors, edgecolors=EDGE, linewidth=0.6, shade=False)
    ax.set_proj_type("ortho")
    ax.view_init(elev=24, azim=-58)
    ax.set_box_aspect((features, batch, space))
    ax.set_axis_off()
    ax.text(features / 2, -0.9, -0.9, "features", "x", ha="center", va="center")
    ax.text(features + 0.7, batch / 2, -0.7, "batch", "y", ha="center", va="center")
    ax.text(-0.6, -0.6, space / 2, "space", "z", ha="center", va="center")
