"""Networks that are no chain: judged node by node, their bugs named."""
