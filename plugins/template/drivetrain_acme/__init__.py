"""Drivetrain on Acme devices."""
