"""Collectives of one rank here, and of several in processes of their own."""

from __future__ import annotations

import torch

from drivetrain_plugins.conformance.check import check, need, require
from drivetrain_plugins.conformance.ranks import run_ranks
from drivetrain_plugins.conformance.subject import Subject


@check()
def one_rank_is_the_identity(subject: Subject) -> None:
    """With one rank every collective gives back what it was given."""
    communicator = subject.parts.communicator
    require((communicator.rank, communicator.world) == (0, 1), "communicator: expected rank 0 of 1")
    host = subject.randn(6, 4)
    results = {
        "all_reduce": communicator.all_reduce(subject.put(host)),
        "all_gather": communicator.all_gather(subject.put(host)),
        "reduce_scatter": communicator.reduce_scatter(subject.put(host)),
        "all_to_all": communicator.all_to_all([subject.put(host)])[0],
        "broadcast": communicator.broadcast(subject.put(host), 0),
    }
    communicator.barrier()
    for name, result in results.items():
        require(subject.get(result).equal(host), f"communicator.{name}: one rank got other values back")


@check()
def all_reduce_works_in_place(subject: Subject) -> None:
    """`all_reduce` and `broadcast` return their argument."""
    x: torch.Tensor = subject.put(subject.randn(4))
    communicator = subject.parts.communicator
    require(communicator.all_reduce(x) is x, "communicator.all_reduce: did not return its argument")
    require(communicator.broadcast(x, 0) is x, "communicator.broadcast: did not return its argument")


@check("parallel")
def several_ranks_agree(subject: Subject) -> None:
    """Every collective between processes, against what one process computes from the same numbers."""
    claimed = subject.parts.capabilities.max_ranks
    need(subject.world > 1, f"capabilities.max_ranks is {claimed}; set `world` to try more ranks than one")
    need(bool(subject.target), "the backend has no import string that a child process could open")
    world = subject.world
    subject.close()
    run_ranks(subject.target, subject.options, world=world, seed=subject.seed)
