"""Few-shot benchmarks over HTTP: what a running server's model knows, and learns from examples."""
