"""Makes Triton's interpreter compute in bfloat16 and float8, which it keeps as bit patterns in integer arrays.

With `TRITON_INTERPRET=1` kernels run on the processor, but arithmetic then runs on the bit patterns themselves and
casts truncate. `repair` replaces the operations concerned: operands are widened to float32, which holds every such
value exactly, and results are rounded once, to the nearest even value, by torch's own casts. A cast that overflows a
float8 type gives what torch gives (NaN for e4m3), not a saturated value: a kernel that forgets to saturate is found.
"""

# Relaxed: Triton and its interpreter are untyped.
# pyright: basic, reportAttributeAccessIssue=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as triton_interpreter

_Handle = triton_interpreter.TensorHandle
_Builder = triton_interpreter.InterpreterBuilder

_TORCH_TYPES: dict[tl.dtype, torch.dtype] = {
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e4b8: torch.float8_e4m3fnuz,
    tl.float8e5: torch.float8_e5m2,
    tl.float8e5b16: torch.float8_e5m2fnuz,
}
"""Types that the interpreter keeps as bits, and torch's names of them."""

_ARITHMETIC = (
    *("fadd", "fsub", "fmul", "fdiv", "frem", "fneg", "fma", "precise_divf", "approx_divf", "clampf"),
    *("minimumf", "minnumf", "maximumf", "maxnumf", "sqrt", "precise_sqrt", "rsqrt", "floor", "ceil"),
    *("exp", "exp2", "log", "log2", "sin", "cos", "erf"),
)


def repair() -> None:
    """Replace the interpreter's operations in this process. Calling it again changes nothing."""
    if getattr(_Builder, "drivetrain_repaired", False):
        return
    for name in _ARITHMETIC:
        if hasattr(_Builder, f"create_{name}"):  # some exist in one Triton version only
            _replace(_Builder, f"create_{name}", _rounding)
    for name in dir(_Builder):
        if name.startswith(("create_fcmp", "create_icmp")):
            _replace(_Builder, name, _comparing)
    _replace(_Builder, "cast_impl", _casting)
    _replace(_Builder, "create_fp_to_fp", _casting_with_mode)
    _replace(_Builder, "create_dot", _multiplying)
    _replace(triton_interpreter.ReduceOps, "sum", _reducing)
    _replace(triton_interpreter.ReduceOps, "min_max", _reducing)
    _replace(triton_interpreter.ScanOps, "cumsum", _reducing)
    _replace(triton_interpreter.ScanOps, "cumprod", _reducing)
    _Builder.get_bf16 = _bfloat16_constant
    # The device's minimum and maximum return the operand that is a number.
    _Builder.create_minnumf = _rounding(lambda self, a, b: self.binary_op(a, b, np.fmin))
    _Builder.create_maxnumf = _rounding(lambda self, a, b: self.binary_op(a, b, np.fmax))
    # A device overflows and divides by zero without a word.
    triton_interpreter.GridExecutor.__call__ = np.errstate(all="ignore")(triton_interpreter.GridExecutor.__call__)
    triton_interpreter._patch_lang_tensor = _with_scalar_index(triton_interpreter._patch_lang_tensor)
    triton_interpreter._patch_lang_core = _with_all_types(triton_interpreter._patch_lang_core)
    _Builder.drivetrain_repaired = True


def _replace(owner: type, name: str, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    setattr(owner, name, wrap(getattr(owner, name)))


def _kept_as_bits(value: object) -> bool:
    return isinstance(value, _Handle) and value.dtype.scalar in _TORCH_TYPES


def _widened(handle: Any) -> np.ndarray:
    """The values of a handle as float32."""
    bits = np.ascontiguousarray(handle.data)
    stored = torch.from_numpy(bits.view(np.int16 if bits.itemsize == 2 else np.int8))
    return stored.view(_TORCH_TYPES[handle.dtype.scalar]).float().numpy().reshape(handle.data.shape)


def _rounded(values: np.ndarray, dtype: Any) -> np.ndarray:
    """Bits of float values in `dtype`, rounded to the nearest even."""
    stored = torch.from_numpy(np.ascontiguousarray(values)).to(_TORCH_TYPES[dtype])
    two_bytes = stored.element_size() == 2
    bits = stored.view(torch.int16 if two_bytes else torch.int8).numpy()
    return bits.view(np.uint16 if two_bytes else np.uint8).reshape(np.shape(values))


def _wide_handle(value: Any) -> Any:
    return _Handle(_widened(value), tl.float32) if _kept_as_bits(value) else value


def _rounding(operation: Callable[..., Any]) -> Callable[..., Any]:
    """An operation whose result has the type of its operands."""

    def compute(self: Any, *args: Any, **kwargs: Any) -> Any:
        dtype = next((arg.dtype.scalar for arg in args if _kept_as_bits(arg)), None)
        if dtype is None:
            return operation(self, *args, **kwargs)
        result = operation(self, *map(_wide_handle, args), **kwargs)
        return _Handle(_rounded(result.data.astype(np.float32), dtype), dtype)

    return compute


def _comparing(operation: Callable[..., Any]) -> Callable[..., Any]:
    """An operation whose result is a truth value, and is of that type: as a float it would be spread as one."""

    def compare(self: Any, *args: Any) -> Any:
        return _Handle(operation(self, *map(_wide_handle, args)).data, tl.int1)

    return compare


def _cast(source: Any, to: Any) -> Any:
    values = _widened(source) if _kept_as_bits(source) else source.data
    if to not in _TORCH_TYPES:
        return _Handle(values.astype(triton_interpreter._get_np_dtype(to)), to)
    # From float64 at once: through float32 it would be rounded twice.
    wide = values if values.dtype == np.float64 else values.astype(np.float32)
    return _Handle(_rounded(wide, to), to)


def _casting(operation: Callable[..., Any]) -> Callable[..., Any]:
    def cast(self: Any, source: Any, destination: Any) -> Any:
        to = destination.scalar
        if to not in _TORCH_TYPES and not _kept_as_bits(source):
            return operation(self, source, destination)
        return _cast(source, to)

    return cast


def _casting_with_mode(operation: Callable[..., Any]) -> Callable[..., Any]:
    nearest = (None, triton_interpreter._ir.ROUNDING_MODE.RTNE)

    def cast(self: Any, source: Any, destination: Any, rounding_mode: Any) -> Any:
        ours = destination.scalar in _TORCH_TYPES or _kept_as_bits(source)
        if not ours or rounding_mode not in nearest:
            return operation(self, source, destination, rounding_mode)
        return _cast(source, destination.scalar)

    return cast


def _multiplying(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Matrix products: exact operands, accumulated in the type of the accumulator."""

    def dot(self: Any, a: Any, b: Any, accumulator: Any, *options: Any) -> Any:
        if not _kept_as_bits(a) and not _kept_as_bits(b):
            return operation(self, a, b, accumulator, *options)
        dtype = accumulator.data.dtype
        left, right = _wide_handle(a).data.astype(dtype), _wide_handle(b).data.astype(dtype)
        return _Handle(np.matmul(left, right) + accumulator.data, accumulator.dtype.scalar)

    return dot


def _reducing(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Reductions and scans of one tensor along an axis."""

    def reduce(self: Any, operand: Any, *args: Any, **kwargs: Any) -> Any:
        tensor = operand[0] if isinstance(operand, tuple) else operand
        if not _kept_as_bits(tensor.handle):
            return operation(self, operand, *args, **kwargs)
        dtype = tensor.handle.dtype.scalar
        wide = _Handle(_widened(tensor.handle), tl.float32)
        shape = list(wide.data.shape)
        result = operation(self, tl.core.tensor(wide, tl.block_type(tl.float32, shape)), *args, **kwargs)

        def narrow(part: Any) -> Any:
            if part.dtype != tl.float32:  # an index
                return part
            bits = _rounded(part.handle.data, dtype)
            return self.to_tensor(bits if part.shape else bits.reshape(-1)[0], dtype)

        return type(result)(map(narrow, result)) if isinstance(result, tuple | list) else narrow(result)

    return reduce


def _bfloat16_constant(self: Any, value: float) -> Any:
    return _Handle(_rounded(np.array([value], np.float32), tl.bfloat16), tl.bfloat16)


def _with_scalar_index(patch: Callable[..., None]) -> Callable[..., None]:
    """Scalars are arrays of one element, which newer numpy refuses to take for an integer."""

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patched


def _with_all_types(patch: Callable[..., None]) -> Callable[..., None]:
    """The interpreter's own list of types leaves out AMD's float8."""
    ours = {"fp8e4b8": tl.float8e4b8, "fp8e5b16": tl.float8e5b16}

    def patched(lang: Any, scope: Any) -> None:
        patch(lang, scope)
        known = lang.dtype.to_ir
        scope.set_attr(lang.dtype, "to_ir", lambda self, builder: ours.get(self.name) or known(self, builder))

    return patched
