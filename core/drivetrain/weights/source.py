"""What the engine asks of a set of weights, wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from drivetrain.errors import WeightError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Shape and dtype with which a tensor is delivered, known before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class WeightSource(Protocol):
    """Named tensors, read one at a time, with the names and shapes of the architecture's Hugging Face checkpoint."""

    @property
    def total_bytes(self) -> int:
        """Bytes to be read for all tensors; the total of a progress bar."""
        ...

    def names(self) -> list[str]:
        """Every tensor's name, in file order."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Shape and dtype of a tensor without reading it. Raises: WeightError: there is no such tensor."""
        ...

    def stored_bytes(self, name: str) -> int:
        """Bytes that `name` takes in the file, so that a progress bar adds up to `total_bytes`."""
        ...

    def get(self, name: str) -> torch.Tensor:
        """The whole tensor on the CPU; may be a read-only view of the mapped file, so copy before writing to it.

        Raises:
            WeightError: there is no such tensor, or it cannot be read.
        """
        ...

    def get_slice(self, name: str, dim: int, start: int, stop: int) -> torch.Tensor:
        """`get(name).narrow(dim, start, stop - start)`, reading no more than needed where the format allows it.

        Raises:
            WeightError: no such tensor, dimension or range.
        """
        ...

    def close(self) -> None:
        """Let go of the files. Tensors already handed out stay valid."""
        ...


def missing_tensor(where: object, name: str, names: list[str]) -> WeightError:
    """The error for a name that a source does not have, with the closest names that it has."""
    import difflib

    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"the closest names are {', '.join(close)}" if close else f"it holds {len(names)} tensors, none alike"
    return WeightError(f"{where}: no tensor {name!r}; {hint}")


def check_range(where: object, name: str, shape: tuple[int, ...], dim: int, start: int, stop: int) -> None:
    """Refuse a slice that lies outside a tensor. Raises: WeightError."""
    if not 0 <= dim < len(shape) or not 0 <= start <= stop <= shape[dim]:
        raise WeightError(
            f"{where}: slice {start}:{stop} of dimension {dim} lies outside {name!r} of shape {list(shape)}"
        )


def open_weights(path: Path) -> WeightSource:
    """Open the weights of a model folder (safetensors) or of a single .gguf file.

    Raises:
        WeightError: no weights there, or files that are corrupt.
        UnsupportedModel: a format or architecture that is not read; pickled weights never are.
    """
    if path.suffix == ".gguf":
        from drivetrain.weights.gguf import GGUFWeights

        return GGUFWeights(path)
    from drivetrain.weights.safetensors import SafetensorsWeights

    return SafetensorsWeights(path)
