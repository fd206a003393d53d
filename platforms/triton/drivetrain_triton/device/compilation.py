"""Compiling a model's kernels in threads, and where nothing is compiled yet in processes, while its weights load.

Some kernels are for requests that ask for something special: they are compiled one by one when nobody waits, or by the
first step that needs them. Many threads beside the first requests would take Python's lock from the step loop.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence

from drivetrain_plugins.contract.executor import Progress
from drivetrain_plugins.errors import BackendError
from drivetrain_plugins.resources import usable_cores
from drivetrain_triton.device.compilers import Compilers
from drivetrain_triton.launch import Compilation, Variant, compile_all, prepare_kernels

PHASE = "compile kernels"
MOST_THREADS = 16
SPECIAL_KERNELS = frozenset({"cascade_kernel", "masks_kernel", "biases_kernel", "penalties_kernel", "logprobs_kernel"})
SPECIAL_CONSTANTS = ("SHARED", "COUNTED")
LONG_KERNELS = frozenset({"bounds_kernel", "decode_kernel", "prefill_kernel", "search_kernel", "stream_gemm_kernel"})
"""Those that take half a second to compile, and not a tenth."""
_POLL_S = 0.02

_log = logging.getLogger(__name__)


def is_special(variant: Variant) -> bool:
    """Whether a plain request alone never launches this."""
    constants = variant.constexprs
    return variant.kernel.__name__ in SPECIAL_KERNELS or any(constants.get(name) for name in SPECIAL_CONSTANTS)


def plain_variants(variants: Iterable[Variant]) -> list[Variant]:
    """Those that a plain request may need, each once.

    Those that take longest to compile come first, so that none of them begins when the others have ended.
    """
    distinct = {variant.key: variant for variant in variants if not is_special(variant)}
    return sorted(distinct.values(), key=lambda variant: variant.kernel.__name__ not in LONG_KERNELS)


class Compiling:
    """A model's kernels on their way: those that plain requests need in threads, the others one by one.

    Args:
        variants: every kernel that this rank's share of the model launches, specialised as its launches will be.
        compilers: processes that help with those that plain requests need. job: theirs.
    """

    def __init__(
        self, variants: Sequence[Variant], progress: Progress, compilers: Compilers | None = None, job: bytes = b""
    ) -> None:
        self._special = [variant for variant in variants if is_special(variant)]
        prepare_kernels(variants)
        plain = plain_variants(variants)
        # One processor is left to the thread that loads weights.
        threads = max(1, min(usable_cores() - 1, MOST_THREADS))
        if compilers is None:
            self._plain = compile_all(plain, max_workers=threads)
        else:
            self._plain = _compile_with(compilers, job, plain, threads)
        self._total = self._plain.remaining
        self._later: Compilation | None = None
        self._progress = progress
        progress(PHASE, 0, self._total, "kernels")

    def wait(self) -> None:
        """Block until plain requests can be served.

        Raises:
            BackendError: a kernel did not compile.
        """
        while remaining := self._plain.remaining:
            self._progress(PHASE, self._total - remaining, self._total, "kernels")
            time.sleep(_POLL_S)
        try:
            self._plain.wait()
        except RuntimeError as error:
            raise BackendError(
                f"{error}; report it with the GPU's name, and remove ~/.triton/cache if it came with an update"
            ) from error
        self._progress(PHASE, self._total, self._total, "kernels")

    def one_more(self) -> bool:
        """Begin or go on compiling one of the others, for a moment; whether there is more to do.

        A thread compiles it, so that a request that comes meanwhile waits for the moment and not for the compiler.
        """
        if self._later is None:
            if not self._special:
                return False
            self._later = compile_all([self._special.pop()], max_workers=1)
        time.sleep(_POLL_S)
        if self._later.remaining:
            return True
        try:
            self._later.wait()
        except RuntimeError as error:
            _log.warning("%s; the first request that needs it tries again", error)
        self._later = None
        return bool(self._special)


def _compile_with(compilers: Compilers, job: bytes, plain: Sequence[Variant], threads: int) -> Compilation:
    """As `compile_all`, shared with processes that know a variant by its place in the list."""
    index_of = {variant.key: index for index, variant in enumerate(plain)}
    return compile_all(
        plain,
        max_workers=compilers.begin(job, len(plain), threads),
        compile_one=lambda variant: compilers.compile(index_of[variant.key], variant.compile),
    )
