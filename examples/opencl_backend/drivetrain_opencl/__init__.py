"""Drivetrain on OpenCL devices."""
