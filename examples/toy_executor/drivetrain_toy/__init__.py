"""A Drivetrain backend with an executor of its own, in numpy."""
