"""Pages of the KV cache: who holds them, and which prefixes they can serve again."""
