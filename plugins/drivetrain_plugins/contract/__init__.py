"""The contract between core and device backends, version `CONTRACT_VERSION`.

`capabilities`, `shapes`, `model` and `batch` are data; `memory`, `runtime`, `communicator`, `attention` and `ops` are
the parts of a device; `executor` and `backend` bind them together; `reference` is the torch meaning of every op.
"""

CONTRACT_VERSION = 1
OLDEST_CONTRACT_VERSION = 1
"""The oldest version whose packages are still served."""
