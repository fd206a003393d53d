"""Models as data: one decoder, and what makes a checkpoint of some family run through it.

families     Hugging Face configuration to `DecoderSpec`, and the names of a family's weights
checkpoint   a checkpoint's tensors under canonical names; random ones in their place
sharding     which part of each weight a rank keeps
loader       from canonical weights on the host to prepared weights on the device
rotary       tables of rotary angles, for every kind of scaling
decoder      the forward pass
"""
