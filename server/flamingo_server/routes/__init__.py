"""One file a group of routes. A route validates, calls a room, and shapes the answer."""
