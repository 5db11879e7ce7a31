"""Networks that say a class for every pixel: judged node by node, their bugs named."""
