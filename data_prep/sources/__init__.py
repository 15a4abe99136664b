"""The nine public sources of VLAA-Thinking, read in the layouts that their publishers ship."""
