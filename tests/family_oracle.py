"""Random small models of `transformers` as oracles, and a hand-driven session of our decoder over paged keys.

T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from drivetrain.models.checkpoint import CheckpointWeights
from drivetrain.models.decoder import Decoder
from drivetrain.models.families import decoder_spec
from drivetrain_cpu.backend import CpuDevice
from drivetrain_cpu.options import CpuOptions
from drivetrain_plugins.contract.backend import RankInfo
from drivetrain_plugins.contract.batch import LAST_TOKEN, NULL_PAGE, BatchLayout, unpack
from drivetrain_plugins.contract.communicator import Communicator, SoleRank
from drivetrain_plugins.contract.memory import MemoryLimits
from drivetrain_plugins.contract.ops import Ops, StepContext
from drivetrain_plugins.contract.shapes import StepShape
from drivetrain_plugins.contract.slots import SlotState

PAGE_SIZE = 4
MAX_LEN = 64
VOCAB = 97


def random_model(config: Any) -> Any:
    """A model of a configuration class, every parameter drawn so that an error anywhere changes the logits."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(20)
    # Falcon's eager attention adds ALiBi twice; its other implementation adds it once.
    attention = "sdpa" if config.model_type == "falcon" else "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).float().eval()
    generator = torch.Generator().manual_seed(21)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and name.endswith("weight"):
                parameter.copy_(1 + 0.3 * noise)
            else:
                parameter.copy_(0.3 * noise)
    return model


def model_config(vocab_size: int = VOCAB, **values: object) -> dict[str, Any]:
    """Keyword arguments that fit every configuration class here."""
    return {"vocab_size": vocab_size, "initializer_range": 0.3, "pad_token_id": None, **values}


class DictSource:
    """A state dict as a source of weights."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = dict(tensors)

    def __str__(self) -> str:
        return "in-memory checkpoint"

    @property
    def total_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    def names(self) -> list[str]:
        return list(self.tensors)

    def get(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def saved_tensors(model: Any) -> dict[str, torch.Tensor]:
    """What saving the model would write: tied weights once."""
    tensors = dict(model.state_dict())
    if model.config.get_text_config().tie_word_embeddings:
        head = model.get_output_embeddings()
        tensors = {name: tensor for name, tensor in tensors.items() if not _is(model, name, head)}
    return tensors


def _is(model: Any, name: str, module: Any) -> bool:
    parent, _, _ = name.rpartition(".")
    return module is not None and model.get_submodule(parent) is module


def cpu_device(*, communicator: Communicator | None = None, ops: Ops | None = None) -> CpuDevice:
    """The CPU backend's device, with other collectives or ops in their place."""
    device = CpuDevice(RankInfo(), CpuOptions(), communicator or SoleRank(), threads=1)
    if ops is not None:
        device.ops = ops
    return device


@dataclass
class Row:
    """New tokens of the sequence in a slot."""

    slot: int
    start: int
    ids: Sequence[int]


class Session:
    """A decoder with pages, driven by hand through `ops.prepare`."""

    def __init__(self, decoder: Decoder, device: Any, *, num_slots: int = 4, num_pages: int = 80) -> None:
        self.decoder, self.device = decoder, device
        self.slots = SlotState(
            num_slots=num_slots, max_pages=MAX_LEN // PAGE_SIZE, vocab_size=VOCAB, device=torch.device("cpu")
        )
        limits = MemoryLimits(kv_bytes=1 << 30, max_pages=num_pages)
        self.cache = device.allocator.reserve(decoder.kv_spec("float32", PAGE_SIZE), limits)
        device.allocator.commit(self.cache, num_pages)
        for layer in self.cache.layers:
            layer[1:] = torch.nan  # nothing that was not written may be read
        free = np.random.default_rng(3).permutation(np.arange(1, num_pages))
        self._free = [int(page) for page in free]
        self.pages: dict[int, list[int]] = {slot: [] for slot in range(num_slots)}

    def share(self, source: int, target: int, num_pages: int) -> None:
        """Give a slot the first pages of another one."""
        self.pages[target] = self.pages[source][:num_pages]
        for index, page in enumerate(self.pages[target]):
            self.slots.page_table_SP[target, index] = page

    @torch.inference_mode()
    def step(self, rows: Sequence[Row], *, padding: int = 0) -> list[torch.Tensor]:
        """Logits of every token, (T, V) a row. `padding` tokens more make up a padding row."""
        updates: list[tuple[int, int, int]] = []
        for row in rows:
            needed = -(-(row.start + len(row.ids)) // PAGE_SIZE)
            while len(self.pages[row.slot]) < needed:
                self.pages[row.slot].append(self._free.pop())
                updates.append((row.slot, len(self.pages[row.slot]) - 1, self.pages[row.slot][-1]))
        updates.append((self.slots.dummy_slot, 0, NULL_PAGE))
        lengths = [len(row.ids) for row in rows] + ([padding] if padding else [])
        layout = BatchLayout(rows=len(lengths), tokens=sum(lengths), samples=len(lengths), page_updates=len(updates))
        packed = np.zeros(layout.size, np.int32)
        part = unpack(packed, layout)
        slots = [row.slot for row in rows] + ([self.slots.dummy_slot] if padding else [])
        part["row_slot"][:] = slots
        part["row_start"][: len(rows)] = [row.start for row in rows]
        np.cumsum(lengths, out=part["query_start"][1:])
        part["token_ids"][: sum(len(row.ids) for row in rows)] = [token for row in rows for token in row.ids]
        part["token_row"][:] = np.repeat(np.arange(len(lengths)), lengths)
        part["sample_row"][:] = np.arange(len(lengths))
        part["page_updates"][:] = updates
        assert LAST_TOKEN not in part["token_ids"]
        inputs = self.device.ops.prepare(torch.from_numpy(packed), layout, self.slots, PAGE_SIZE)
        shape = StepShape(rows=layout.rows, tokens=layout.tokens, pages=MAX_LEN // PAGE_SIZE)
        plan = self.device.attention.plan(inputs, shape, None, self.cache)
        context = StepContext(
            attention=self.device.attention, plan=plan, cache=self.cache, communicator=self.device.communicator
        )
        logits = self.decoder.logits(self.decoder.forward(inputs, context))
        return list(logits.split(lengths))[: len(rows)]


def load_decoder(
    tensors: Mapping[str, torch.Tensor], config: Mapping[str, object], device: Any = None, max_model_len: int = MAX_LEN
) -> Decoder:
    """Our decoder with a checkpoint's weights, in fp32."""
    weights = CheckpointWeights(DictSource(tensors), config, decoder_spec(config))
    decoder = Decoder(weights.spec, device or cpu_device(), "float32", max_model_len)
    decoder.load(weights, lambda *_: None)
    return decoder


def assert_close(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Within 1e-4 of the largest logit: both sides round in fp32, whose error grows with the logits."""
    assert got.dtype == torch.float32
    limit = 1e-4 * max(1.0, expected.abs().max().item())
    error = (got - expected).abs().max().item()
    assert error <= limit, f"logits differ by {error:.2e}, more than {limit:.2e}"
