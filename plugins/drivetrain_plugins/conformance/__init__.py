"""Proof that a backend keeps the contract: a pytest suite that a vendor subclasses, and a report without pytest.

`check` and `subject` are what checks are written with; `oracle` and `tiny_llama` are the truth; `batches`,
`paged_rows`, `parts_executor` and `session` drive a device as core does; the `*_checks` modules hold the checks; `run`
runs them, and `suite`, the only module that needs pytest, shows them to pytest.
"""
