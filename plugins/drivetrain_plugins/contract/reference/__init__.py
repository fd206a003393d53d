"""The plain torch meaning of every op: the oracle of tests, the fallback of backends, and what CPU code starts from."""

from drivetrain_plugins.contract.reference.dequantize import dequantize
from drivetrain_plugins.contract.reference.elementwise import activate, norm, prepare_linear, qk_norm, rotate
from drivetrain_plugins.contract.reference.prepare import prepare
from drivetrain_plugins.contract.reference.sampling import sample, token_logprobs

__all__ = [
    "activate",
    "dequantize",
    "norm",
    "prepare",
    "prepare_linear",
    "qk_norm",
    "rotate",
    "sample",
    "token_logprobs",
]
