"""The perplexity subsets of the SFT split (VLAA-Thinking, sections 3.1 and 4.2): scores by our models, and ranking."""
