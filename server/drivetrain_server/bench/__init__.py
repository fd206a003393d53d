"""Load tests of OpenAI-style servers over HTTP."""
