"""Checkpoints from elsewhere, and back: norms of torch, Flax, Haiku, Equinox and Keras.

Two verbs between plain mappings of names to arrays and `Layer`s, which belong to no framework:

    layers, left = convert.read("torch", state_dict)                 # every norm, and what was left alone, and why
    state, arguments, lost = convert.write("flax", layers)           # arrays, constructor words, what has no word there

    >>> import numpy as np, jax.numpy as jnp, jaxnorm as jn
    >>> from jaxnorm import convert
    >>> bn = {"weight": np.full(2, 3.0), "bias": np.zeros(2), "running_mean": np.array([4.0, 1.0]),
    ...       "running_var": np.array([4.0, 1.0]), "num_batches_tracked": np.array(20)}
    >>> state_dict = {f"bn1.{name}": value.astype(np.float32) for name, value in bn.items()}
    >>> state_dict |= {"ln.weight": np.ones(2), "fc.weight": np.ones((5, 2)), "fc.bias": np.zeros(5)}
    >>> layers, left = convert.read("torch", state_dict)
    >>> left
    {'ln.weight': 'may be a norm: name its kind in `norms`', 'fc.weight': 'no norm', 'fc.bias': 'no norm'}

`left` says what needs a word from you: in torch, NNX and Equinox a lone weight may be a norm or not, so you name its
kind; and no state holds epsilon, momentum or the number of groups, so you repeat what the constructor was told, in its
own words. What you do not say is the framework's default.

    >>> layers, left = convert.read("torch", state_dict, {"ln": "layer_norm", "bn*": {"eps": 1e-3, "momentum": 0.01}})
    >>> list(left)
    ['fc.weight', 'fc.bias']
    >>> layer = layers["bn1"]
    >>> layer.kind, layer.options
    ('batch_norm', {'ddof': 1, 'debias': False, 'epsilon': 0.001, 'momentum': 0.99})

A layer is what the function of its kind takes, with the convention of its origin: torch's momentum has become the
weight of the past, and `ddof=1` goes on storing the unbiased variance.

    >>> x = jnp.array([[4.0, 1.0], [6.0, 3.0]])
    >>> y, stats = jn.batch_norm(x, layer.stats, layer.scale, layer.bias, training=False, **layer.options)
    >>> y.round(2)
    Array([[0., 0.],
           [3., 6.]], dtype=float32)

Into another framework go the same layers under that framework's names:

    >>> names = {"bn1": "BatchNorm_0", "ln": "LayerNorm_0"}
    >>> variables, arguments, lost = convert.write("flax", {names[name]: layer for name, layer in layers.items()})
    >>> arguments["BatchNorm_0"]  # for jaxnorm.linen.BatchNorm
    {'momentum': 0.99, 'epsilon': 0.001, 'ddof': 1}

Nothing is unpickled and no framework is imported. Where the mappings come from:

    torch     torch.load(path, weights_only=True), safetensors.numpy.load_file(path) or model.state_dict(). NumPy has no
              bfloat16: x.float() those first.
    flax      Linen variables, {"params": ..., "batch_stats": ...}, nested or flat with / or .
    nnx       nnx.to_pure_dict(nnx.state(model)); back with nnx.replace_by_pure_dict. Nested or flat.
    haiku     {"params": params, "state": state}
    equinox   fields by name, flat with dots or nested; a State's values under the fields that index them:
              {"bn": {"weight": bn.weight, "bias": bn.bias, "batch_state_index": state.get(bn.batch_state_index),
              "batch_counter": state.get(bn.batch_counter)}}; SpectralNorm has "layer" and "uv_index", WeightNorm "g"
    keras     {v.path: np.asarray(v) for v in model.variables}

A weight norm or spectral norm is named by a module and the weight within it: "fc:weight" in torch, where it is stored
as `fc.parametrizations.weight.original0`; "WeightNorm_0:Dense_0/kernel" in Linen, where that wrapper has
`Dense_0/kernel/scale`; "wn:kernel" in NNX; "spectral_normalization:dense/kernel" in Keras. Haiku's has no weight.

What is exact, and what is lost:

- Reading and writing back gives every bit, but for: sums that Haiku and Equinox keep of debiased averages and torch's v
  (made anew, to rounding); half precision statistics (they become float32); counts above 2^24; torch's old
  `weight_g`, `weight_orig` (written as parametrizations).
- Flax and Keras count no updates: the layer's count is 0, which matters to `momentum=None` and `debias` only.
- A running variance goes over as it is. It is unbiased if it was torch's; what later updates store is `ddof`.
- Haiku's and Equinox's (mode="batch") averages are debiased: the state here is the average itself, with `debias=True`.
  A plain average goes there with a counter so large that there is nothing to debias. Equinox's variance starts at 1,
  which its debiasing keeps: t updates leave momentum^t / (1 - momentum^t) in it, and that is what is read. Its
  mode="ema" is read for inference (it trains by running averages, which no function here does).
- Spectral norm: u goes over. v does not: inference here makes it from u and the weight, which is torch's v where no
  optimizer step came after its last forward pass in training. Flax iterates in inference too; Keras keeps the divided
  kernel and does not divide in inference, so `write` divides for it, and what is read is divided again by its own norm.
- `scale_offset` is no state of any peer, and goes nowhere.
"""

from jaxnorm.convert.layer import Layer
from jaxnorm.convert.reading import Found, read, read_layer
from jaxnorm.convert.writing import Written, write

__all__ = ["Found", "Layer", "Written", "read", "read_layer", "write"]
