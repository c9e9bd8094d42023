"""Learning from documents, offline: `flamingo train CONFIG.toml`. The server never imports it.

    [model]
    base = "embedded"                           # what `flamingo serve` takes

    [train]
    what = ["resampler", "cross_attention"]     # and "embeddings", "lora", "vision"
    steps = 500
    warm_up = 20

    [[datasets]]
    path = "pictures"                           # as `flamingo data check` reads it
    batch = 8
    augment = ["flip", "colour"]

    [output]
    folder = "runs/mine"

`config.py` has all keys. `mixture` draws a step's documents, `rows` and `pixels` make them tokens
and frames, `objective` is the loss, `loop` runs any `Stage`, `state` lets it go on after a kill,
`result` writes the adapter or the checkpoint.
"""
