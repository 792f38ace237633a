"""Told: what the caller says about the layers of a state, which the state itself does not."""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from jaxnorm.convert.framework import REQUIRED, Framework
from jaxnorm.convert.layer import fail

Norms = Mapping[str, str | Mapping[str, Any]]


class Told:
    """The argument `norms` of `read`, asked name by name."""

    def __init__(self, peer: Framework, norms: Norms):
        self.peer = peer
        self.norms = {
            pattern: {"kind": told} if isinstance(told, str) else dict(told) for pattern, told in norms.items()
        }
        for pattern, told in self.norms.items():
            if told.get("kind") not in (None, *peer.words):
                todo = f"It has {', '.join(peer.words)}."
                fail(f"{peer.name} must have the kind that '{pattern}' is said to be", repr(told["kind"]), todo)
        self.used: set[str] = set()

    def _of(self, name: str) -> tuple[str, dict[str, Any]]:
        matching = (pattern for pattern in self.norms if fnmatchcase(name, pattern))
        pattern = next(matching, "")
        return pattern, self.norms.get(pattern, {}) if fnmatchcase(name, pattern) else {}

    def kind(self, name: str, recognized: str | None, roles: Iterable[str]) -> str | None:
        """The kind of a layer: what is said if that fits what is there, or what was recognized."""
        pattern, told = self._of(name)
        kind = told.get("kind", recognized)
        if kind is not None:
            self.used.add(pattern)
        possible = {recognized, "instance_norm"} if recognized == "batch_norm" else {recognized}
        others = set(roles) - {"scale", "bias"}
        if kind not in possible and (others or kind in ("weight_norm", "spectral_norm")):
            got = f"kind '{kind}' for {', '.join(sorted(roles))}"
            todo = f"It looks like {' or '.join(sorted(map(str, possible)))}." if recognized else "Leave it out."
            fail(f"'{name}' must be of a kind that has its parts", got, todo)
        return kind

    def words(self, name: str, kind: str) -> dict[str, Any]:
        """All words of a layer's constructor: what is said, and the framework's defaults."""
        said = {word: value for word, value in self._of(name)[1].items() if word != "kind"}
        known = self.peer.words[kind]
        for word in said:
            if word not in known:
                todo = f"Known: {', '.join(known) or 'none'}."
                fail(f"'{name}' must be described in the words of {self.peer.name}'s {kind}", repr(word), todo)
        words = {**known, **said}
        missing = [word for word, value in words.items() if value is REQUIRED]
        if missing:
            todo = f"Say norms={{'{name}': {{'kind': '{kind}', '{missing[0]}': ...}}}}."
            fail(f"'{name}' needs `{missing[0]}`, for which {self.peer.name} has no default", "none", todo)
        return words

    def all_used(self) -> None:
        for pattern in self.norms:
            if pattern not in self.used:
                todo = "Check the name, or say its kind: see `left` of a read without `norms`."
                fail("every name in `norms` must fit a norm", f"'{pattern}', which fits none", todo)
