"""Digit scenes: handwritten digits on coloured grounds, with questions for every verifier (the demo's data)."""
