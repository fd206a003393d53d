"""Getting models into the local store: from a hub, a Python package, or a folder.

Only safetensors, GGUF and plain text files are taken; pickles and code are left where they are. Whatever is fetched is
checked against the digest that its source states, and appears in the store in one step.
"""
