"""The one place that launches kernels, and compiles them ahead.

Programmatic dependent launch (PDL) lets a kernel start while the one before it still ends. Every kernel takes a
constexpr `PDL` that says whether it is launched so; it then waits (`gdc_wait`) in every program before it reads or
writes what other kernels touch.

Compiling ahead must specialise exactly as the launch will: on the type of a pointer and whether it is a multiple of 16,
on whether an integer is 1 or a multiple of 16. So variants are recorded from the functions that launch, called with
tensors on torch's "meta" device, which have types, shapes and offsets but no memory:

    with recording() as variants:
        norm(torch.empty(8, 4096, dtype=torch.bfloat16, device="meta"), ...)
    compile_all(variants, max_workers=8).wait()

Threads may compile side by side: Triton (3.6 and 3.9) makes a context of its own for every compilation, and ptxas is a
process. Only the per-device cache of a kernel is made without a lock, so `compile_all` makes it before the threads
start. Two threads that compile the same variant would both do the work, which is why equal variants are compiled once.
"""

# Relaxed: Triton is untyped.
# pyright: basic, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.runtime import driver
from triton.runtime.cache import triton_key
from triton.runtime.jit import JITFunction

Argument = torch.Tensor | TensorDescriptor | torch.dtype | int | float | None
Constexpr = bool | int | float | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One specialisation of a kernel.

    Attributes:
        kernel: a function decorated with `triton.jit`.
        args: runtime arguments in order. A tensor counts by its type and alignment; a torch dtype is an aligned pointer
            to such elements.
        constexprs: by name, without `PDL`.
        pdl: launched with programmatic dependent launch.
        options: further launch options of Triton.
    """

    kernel: Any
    args: tuple[Argument, ...]
    constexprs: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 1
    pdl: bool = False
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for variants that compile to the same code."""
        named = tuple(sorted((name, str(value)) for name, value in (*self.constexprs.items(), *self.options.items())))
        args = tuple(
            _specialised(arg, parameter) for arg, parameter in zip(self.args, self.kernel.params, strict=False)
        )
        return id(self.kernel), args, named, self.num_warps, self.num_stages, self.pdl

    @property
    def launch_options(self) -> dict[str, Any]:
        """Everything that Triton takes beside the kernel's runtime arguments."""
        return _options(self.num_warps, self.num_stages, self.pdl, {**self.constexprs, **self.options})

    def compile(self) -> str:
        """Compile for the current device, load the code and keep the result where a launch finds it.

        Returns:
            The hash under which the code lies in Triton's cache on disk.
        """
        made = self.kernel.warmup(*self.args, grid=(1,), **self.launch_options)
        # An absent device has nothing to load into. Triton's launchers are compiled too, each for a fifth of a second.
        if hasattr(driver.active, "launcher_cls"):
            _ = made.run
        return made.hash

    def __str__(self) -> str:
        name = getattr(self.kernel, "__name__", repr(self.kernel))
        types = ", ".join(str(arg.dtype if isinstance(arg, torch.Tensor) else arg) for arg in map(_tensor, self.args))
        return f"{name}({types}) with {dict(self.constexprs)}, {self.num_warps} warps"


def _tensor(arg: Argument) -> Argument:
    """The tensor behind a descriptor."""
    return arg.base if isinstance(arg, TensorDescriptor) else arg


def _specialised(arg: Argument, parameter: Any) -> tuple[Any, ...]:
    """What of an argument the compiled code depends on. `parameter` is Triton's description of it."""
    if isinstance(arg, torch.Tensor | torch.dtype):
        aligned = isinstance(arg, torch.dtype) or arg.data_ptr() % 16 == 0
        dtype = arg.dtype if isinstance(arg, torch.Tensor) else arg
        return dtype, aligned or parameter.do_not_specialize_on_alignment or parameter.do_not_specialize
    if isinstance(arg, int) and not isinstance(arg, bool):
        fits = -(1 << 31) <= arg < 1 << 31
        return (int, fits) if parameter.do_not_specialize else (int, fits, arg == 1, arg % 16 == 0)
    return (type(arg),)


def _options(num_warps: int, num_stages: int, pdl: bool, further: Mapping[str, Any]) -> dict[str, Any]:
    # Whether products and sums are fused is said, because Triton's default is about to change.
    options = {"enable_fp_fusion": True, **further, "num_warps": num_warps, "num_stages": num_stages, "PDL": pdl}
    if pdl:
        options["launch_pdl"] = True
    return options


def hash_compiler() -> None:
    """Let Triton hash its own files, which every key of its cache holds: half a second, once in a process."""
    triton_key()


def load_driver() -> None:
    """Load Triton's module for the device; a C compiler makes it first where no cache has it, for half a second."""
    driver.active.get_current_device()


_recorder: ContextVar[list[Variant] | None] = ContextVar("recorder", default=None)


@contextmanager
def recording() -> Iterator[list[Variant]]:
    """Inside, `launch` runs nothing and appends what it would have launched to the list."""
    variants: list[Variant] = []
    token = _recorder.set(variants)
    try:
        yield variants
    finally:
        _recorder.reset(token)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    *args: Argument,
    num_warps: int = 4,
    num_stages: int = 1,
    pdl: bool = False,
    options: Mapping[str, Any] | None = None,
    **constexprs: Any,
) -> None:
    """Run a kernel on the current stream, or record it inside `recording`.

    Args:
        grid: programs in each dimension; an empty grid runs nothing.
        args: runtime arguments in order.
        pdl: with programmatic dependent launch; the interpreter has none and ignores it.
        options: further launch options of Triton.
        constexprs: by name; `PDL` is added.
    """
    recorder = _recorder.get()
    if recorder is not None:
        further = dict(options or {})
        variant = Variant(
            kernel=kernel,
            args=args,
            constexprs=constexprs,
            num_warps=num_warps,
            num_stages=num_stages,
            pdl=pdl,
            options=further,
        )
        recorder.append(variant)
    elif isinstance(kernel, JITFunction):
        kernel[grid](*args, **_options(num_warps, num_stages, pdl, {**constexprs, **(options or {})}))
    else:
        kernel[grid](*args, PDL=False, **constexprs)


class Compilation:
    """Kernels that are being compiled by threads in the background."""

    def __init__(self, pool: ThreadPoolExecutor, futures: dict[Future[object], Variant]) -> None:
        self._pool = pool
        self._futures = futures

    @property
    def remaining(self) -> int:
        """Variants that are not compiled yet."""
        return sum(not future.done() for future in self._futures)

    def wait(self) -> None:
        """Block until every variant is compiled.

        Raises:
            RuntimeError: one did not compile; the first one's error is the cause.
        """
        wait(self._futures)
        self._pool.shutdown()
        failed = [(variant, future.exception()) for future, variant in self._futures.items() if future.exception()]
        if failed:
            variant, error = failed[0]
            raise RuntimeError(
                f"{len(failed)} of {len(self._futures)} kernels did not compile; the first is {variant}: {error}"
            ) from error


def prepare_kernels(variants: Iterable[Variant]) -> None:
    """Do what threads that compile side by side must find done: hash the kernels, and make their caches in memory."""
    device = driver.active.get_current_device()
    kernels = {id(variant.kernel): variant.kernel for variant in variants}
    # In an order that is always the same, for functions that `_hash` does not see.
    for kernel in sorted(kernels.values(), key=lambda kernel: (kernel.__module__, kernel.__qualname__)):
        _hash(kernel, frozenset())
        _ = kernel.device_caches[device]


def _hash(kernel: JITFunction, above: frozenset[str]) -> None:
    """Hash the functions that a kernel calls, then itself.

    Triton 3.6 and 3.7 leave constants of functions that they did not hash before out of the hash of those that call
    them. The cache on disk goes by it, and would find a kernel or not, depending on what another thread did first.
    """
    for name in kernel.fn.__code__.co_names:
        called = kernel.fn.__globals__.get(name)
        if isinstance(called, JITFunction) and name not in above:
            _hash(called, above | {name})
    _ = kernel.cache_key


def compile_all(
    variants: Iterable[Variant], *, max_workers: int, compile_one: Callable[[Variant], object] = Variant.compile
) -> Compilation:
    """Start compiling variants for the current device in `max_workers` threads.

    Equal variants are compiled once, and what Triton's cache on disk has is only read. The calling thread's device is
    the threads' device.

    Args:
        compile_one: does `Variant.compile`, if perhaps with the help of others.
    """
    distinct = {variant.key: variant for variant in variants}
    prepare_kernels(distinct.values())
    device = driver.active.get_current_device()
    pool = ThreadPoolExecutor(max_workers, "compile", driver.active.set_current_device, (device,))
    return Compilation(pool, {pool.submit(compile_one, variant): variant for variant in distinct.values()})
