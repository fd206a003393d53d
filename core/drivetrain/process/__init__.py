"""The engine in a process of its own: frames on a Unix socket, the worker's loop, and the client that supervises it."""
