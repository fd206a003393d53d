"""The parts of the scheduler: its limits, its queue, and what a step says."""
