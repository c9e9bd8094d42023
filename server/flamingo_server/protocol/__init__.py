"""The wire: what each route takes and gives. Unknown fields are refused.

Shapes are the contract; nothing here knows the engine.
"""
