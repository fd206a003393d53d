"""A device that computes tokens by hashing, and reads what came before only through the KV pages.

The KV of a position is a hash of its token and of the KV before it, found through the page table of the row's slot. The
sampled id is a hash of all KV of the sequence. So a wrong page, a stale page, a missing copy, a wrong id or a wrong
order of steps all show as a wrong answer. Tables and last ids live by slot and learn only what a schedule tells.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from drivetrain.request import Request
from drivetrain.scheduler import Schedule

VOCAB = 40
EOS = frozenset({0, 1})
SPOILT = -7


def root_of(salt: bytes) -> int:
    return int.from_bytes(salt, "big") + 3


def sample(kv: list[int], seed: int, num_prompt: int, min_tokens: int) -> int:
    drawn = hash((seed, *kv))
    token = drawn % VOCAB
    if token in EOS and len(kv) - num_prompt < min_tokens:
        token = 2 + drawn // VOCAB % (VOCAB - 2)
    return token


def expected_outputs(request: Request, count: int) -> list[int]:
    """The first `count` outputs (fewer if it ends) as a pure function of prompt, salt and seed."""
    kv: list[int] = []
    last = root_of(request.salt)
    for token in request.prompt_ids:
        last = hash((last, token))
        kv.append(last)
    seed, min_tokens = request.params.seed or 0, request.params.min_tokens
    outputs: list[int] = []
    while len(outputs) < count:
        token = sample(kv, seed, request.num_prompt, min_tokens)
        outputs.append(token)
        if token in request.eos_ids and len(outputs) > min_tokens:
            break
        last = hash((last, token))
        kv.append(last)
    return outputs


@dataclass(slots=True)
class StagedRow:
    request_id: str
    slot: int
    start: int
    num_tokens: int
    samples: bool
    host_ids: array[int] | None  # None: the slot's last sampled id
    admitted: bool
    new_pages: list[int]
    root: int
    seed: int
    num_prompt: int
    min_tokens: int


@dataclass(slots=True)
class Staged:
    rows: list[StagedRow]
    copies: list[tuple[int, int]]


class PagedDevice:
    def __init__(self, num_pages: int, page_size: int, num_slots: int) -> None:
        self.page_size = page_size
        self.cells: list[list[int]] = [[SPOILT] * page_size for _ in range(num_pages)]
        self.tables: list[list[int]] = [[] for _ in range(num_slots)]
        self.last_ids: list[int] = [SPOILT] * num_slots

    def stage(self, schedule: Schedule) -> Staged:
        """Captures what the host knows now; nothing of the request may be read later."""
        rows: list[StagedRow] = []
        for row in schedule.rows:
            request = row.request
            end = row.start + row.num_tokens
            known = row.start < len(request.tokens)
            rows.append(
                StagedRow(
                    request_id=request.request_id,
                    slot=row.slot,
                    start=row.start,
                    num_tokens=row.num_tokens,
                    samples=row.samples,
                    host_ids=request.tokens[row.start : end] if known else None,
                    admitted=row.admitted,
                    new_pages=request.pages[row.first_new_page : row.first_new_page + row.num_new_pages],
                    root=root_of(request.salt),
                    seed=request.params.seed or 0,
                    num_prompt=request.num_prompt,
                    min_tokens=request.params.min_tokens,
                )
            )
        return Staged(rows, list(schedule.page_copies))

    def run(self, staged: Staged) -> list[int]:
        """Executes a step; returns the sampled ids in row order."""
        size = self.page_size
        for source, target in staged.copies:
            self.cells[target][:] = self.cells[source]
        # All rows read what earlier steps wrote before any row writes: rows of a step run side by side.
        prefixes = [self._read(row) for row in staged.rows]
        sampled: list[int] = []
        for row, kv in zip(staged.rows, prefixes, strict=True):
            table = self.tables[row.slot]
            last = kv[-1] if kv else row.root
            for token in row.host_ids if row.host_ids is not None else (self.last_ids[row.slot],):
                last = hash((last, token))
                at = len(kv)
                self.cells[table[at // size]][at % size] = last
                kv.append(last)
            if row.samples:
                token = sample(kv, row.seed, row.num_prompt, row.min_tokens)
                self.last_ids[row.slot] = token
                sampled.append(token)
        return sampled

    def spoil(self, staged: Staged) -> None:
        """A step that fails leaves rubbish where it would have written."""
        for row in staged.rows:
            self._read(row)
            table = self.tables[row.slot]
            for at in range(row.start, row.start + row.num_tokens):
                self.cells[table[at // self.page_size]][at % self.page_size] = SPOILT
            self.last_ids[row.slot] = SPOILT

    def _read(self, row: StagedRow) -> list[int]:
        if row.admitted:
            self.tables[row.slot] = []
            self.last_ids[row.slot] = SPOILT
        table = self.tables[row.slot]
        table += row.new_pages
        assert 0 not in table, f"{row.request_id} got the null page"
        kv: list[int] = []
        for page in table[: -(-row.start // self.page_size)]:
            kv += self.cells[page]
        del kv[row.start :]
        return kv
