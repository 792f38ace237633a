"""What callers may ask a picture for: what is there, of whole layers."""

from collections.abc import Sequence

import numpy as np

from jaxnorm.inspect import History


def chosen(function: str, argument: str, given: Sequence | None, existing: Sequence) -> Sequence:
    """What to draw: all there is unless chosen, and nothing that is not there."""
    if not len(existing):
        raise ValueError(f"{function}: a history must not be empty; got nothing to draw. Record something first.")
    if isinstance(given, str):
        raise TypeError(f"{function}: `{argument}` must be a list of names; got {given!r}. Write [{given!r}].")
    for one in existing if given is None else given:
        if one not in existing:
            todo = f"Recorded: {', '.join(map(str, existing))}."
            raise ValueError(f"{function}: `{argument}` must be recorded in the history; got {one!r}. {todo}")
    return existing if given is None else given


def check_whole(function: str, history: History, names: Sequence[str]) -> None:
    """One histogram per step: pictures have no room for one per feature."""
    for name in names:
        shape = np.shape(history[name].histogram)
        if len(shape) != 2:
            raise ValueError(
                f"{function}: summaries must be of whole layers; got a histogram of shape {shape} for {name!r}. "
                "Summarize with axis=None."
            )
