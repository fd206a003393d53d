"""What tests set of the card that is not there."""

free_bytes = 0
"""Free memory; 0 is half of the host's."""
hangs = False
"""Whether the card never comes to an end."""
device_type = "synDeviceGaudi2"
decomposes = False
"""Whether graphs go through AOT autograd, as Habana's do: mutations become copies. Slow, so off."""
