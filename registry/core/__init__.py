"""What every registry shares: the protocol, the bundle that travels, atomic files."""
