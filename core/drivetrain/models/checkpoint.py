"""A checkpoint under canonical names: a family's rules over whatever holds its tensors. Or random weights instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Protocol

import torch

from drivetrain.errors import WeightError
from drivetrain.models.families import family_of
from drivetrain.models.families.names import Either, Fused, Place, Stacked
from drivetrain_plugins.contract.capabilities import Dtype
from drivetrain_plugins.contract.executor import Weights
from drivetrain_plugins.contract.model import DecoderSpec, weight_shapes

_LAYER_MODULE = re.compile(r"layers\.(\d+)\.(.+)")
_SUFFIXES = ("weight", "bias")


class TensorSource(Protocol):
    """What is needed of files of weights. `str()` of it names them in errors."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        ...

    def names(self) -> Iterable[str]:
        """Every tensor's name."""
        ...

    def get(self, name: str) -> torch.Tensor:
        """A whole tensor on the host."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """How a canonical weight comes out of the checkpoint's tensors."""

    sources: tuple[str, ...]
    place: Place
    layer: int | None


class CheckpointWeights(Weights):
    """A checkpoint of a known family under canonical names.

    Attributes:
        spec: as given, but tied if the checkpoint has no output matrix of its own.

    Args:
        source: the checkpoint's tensors.
        config: its Hugging Face configuration; names the family.
        spec: what `decoder_spec` made of the configuration.

    Raises:
        WeightError: a weight is missing, or a tensor is there that the family does not know.
    """

    def __init__(self, source: TensorSource, config: Mapping[str, object], spec: DecoderSpec) -> None:
        self._source = source
        self._rules = family_of(config).names
        self._names = frozenset(source.names())
        self._root = self._find_root()
        if not spec.tied and not self._names.intersection(self._candidates("lm_head.weight")):
            spec = replace(spec, tied=True)
        self.spec = spec
        self._shapes = dict(weight_shapes(spec))
        self._recipes = {name: self._recipe(name) for name in self._shapes}
        self._refuse_unexpected()
        self._fused: tuple[str, torch.Tensor] | None = None

    @property
    def total_bytes(self) -> int:
        return self._source.total_bytes

    def load(self, name: str) -> torch.Tensor:
        if name == "lm_head.weight" and self.spec.tied:
            name = "embed.weight"
        recipe, expected = self._recipes[name], self._shapes[name]
        place = recipe.place
        if isinstance(place, Stacked):
            return torch.stack([self._checked(source, expected[1:]) for source in recipe.sources])
        source = recipe.sources[0]
        if isinstance(place, Fused):
            assert recipe.layer is not None, "only projections of layers are fused"
            layer = self.spec.layers[recipe.layer]
            return place.take(self._whole(source, (place.rows(layer), *expected[1:])), layer)
        return self._checked(source, expected)

    def _whole(self, source: str, expected: tuple[int, ...]) -> torch.Tensor:
        """A fused tensor, kept until the next one is asked for: its parts are loaded one after another."""
        if self._fused is None or self._fused[0] != source:
            self._fused = (source, self._checked(source, expected))
        return self._fused[1]

    def _checked(self, source: str, expected: tuple[int, ...]) -> torch.Tensor:
        tensor = self._source.get(source)
        turned = self._rules.transposed and len(expected) == 2 and not self._is_table(source)
        stored = expected[::-1] if turned else expected
        if tuple(tensor.shape) != stored:
            raise WeightError(f"{self._source}: {source} has shape {list(tensor.shape)}, expected {list(stored)}")
        return tensor.t() if turned else tensor

    def _is_table(self, source: str) -> bool:
        """Whether a matrix is looked up by row (embeddings and the output matrix), which is never transposed."""
        tables = ("embed.weight", "embed.positions", "lm_head.weight")
        return any(source in self._recipes[name].sources for name in tables if name in self._recipes)

    def _find_root(self) -> str:
        place = self._rules.places["embed"]
        assert isinstance(place, str), "embeddings stand alone"
        candidates = [place.format(root=root) + ".weight" for root in self._rules.roots]
        for root, name in zip(self._rules.roots, candidates, strict=True):
            if name in self._names:
                return root
        raise WeightError(f"{self._source}: has no embedding; expected a tensor named {' or '.join(candidates)}")

    def _candidates(self, name: str) -> tuple[str, ...]:
        """Checkpoint names that a canonical weight of one place may have, the preferred one first."""
        layer, place, suffix = self._place(name)
        match place:
            case Either(modules=modules):
                templates = modules
            case Fused(module=module) | Stacked(module=module):
                templates = (module,)
            case str():
                templates = (place,)
        heads = range(self._shapes[name][0]) if isinstance(place, Stacked) else (0,)
        return tuple(
            template.format(root=self._root, i=layer, h=head) + suffix for template in templates for head in heads
        )

    def _place(self, name: str) -> tuple[int | None, Place, str]:
        match = _LAYER_MODULE.fullmatch(name)
        layer = int(match[1]) if match else None
        key = f"layers.{match[2]}" if match else name
        if key in self._rules.places:
            return layer, self._rules.places[key], ""
        module, _, suffix = key.rpartition(".")
        if suffix not in _SUFFIXES or module not in self._rules.places:
            raise AssertionError(f"the family's rules lack a place for {name}")
        return layer, self._rules.places[module], f".{suffix}"

    def _recipe(self, name: str) -> _Recipe:
        layer, place, _ = self._place(name)
        candidates = self._candidates(name)
        found = tuple(candidate for candidate in candidates if candidate in self._names)
        missing = len(found) < len(candidates) if isinstance(place, Stacked) else not found
        if missing:
            lacking = [candidate for candidate in candidates if candidate not in self._names]
            raise WeightError(
                f"{self._source}: lacks {' or '.join(lacking[:3])} ({name}); the files are incomplete, "
                f"or config.json belongs to another model"
            )
        return _Recipe(sources=found if isinstance(place, Stacked) else found[:1], place=place, layer=layer)

    def _refuse_unexpected(self) -> None:
        expected = {source for recipe in self._recipes.values() for source in recipe.sources}
        if self.spec.tied:
            expected.update(self._candidates("lm_head.weight"))
        unexpected = sorted(
            name
            for name in self._names - expected
            if not any(fnmatchcase(name, pattern) for pattern in self._rules.ignored)
        )
        if unexpected:
            shown = ", ".join(unexpected[:5]) + (f" and {len(unexpected) - 5} more" if len(unexpected) > 5 else "")
            raise WeightError(
                f"{self._source}: {self.spec.architecture} has no place for {shown}; "
                f"is config.json that of another model, or are these adapters to merge first?"
            )


class RandomWeights(Weights):
    """Small random weights of a spec, for benchmarks without a checkpoint.

    Args:
        dtype: type of every weight.
        seed: another seed gives other values.
        device: where they are made.
    """

    def __init__(self, spec: DecoderSpec, *, dtype: Dtype, seed: int = 0, device: torch.device | None = None) -> None:
        from drivetrain.weights.dummy import DummyWeights

        stored: torch.dtype = getattr(torch, dtype)
        tensors = {name: (shape, stored) for name, shape in weight_shapes(spec)}
        self._source = DummyWeights(tensors, seed=seed, device=device)

    @property
    def total_bytes(self) -> int:
        return self._source.total_bytes

    def load(self, name: str) -> torch.Tensor:
        return self._source.get(name)
