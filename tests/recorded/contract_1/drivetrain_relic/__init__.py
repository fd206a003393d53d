"""Drivetrain on Relic devices."""
