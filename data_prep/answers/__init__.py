"""Models that answer: any OpenAI-compatible endpoint or our own policy, behind a cache, a ledger and a budget."""
