"""The parts of the scheduler: its limits, what they admit, its queue, and what a step says."""
