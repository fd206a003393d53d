"""How families of models spell reasoning and tool calls, and the machine that reads them while tokens arrive."""
