"""The engine: one thread that batches requests, runs the model and sends events back.

It knows neither HTTP nor the wire format. Start reading at `engine.Engine.step`.
"""
