"""Tree search over reasoning steps: from questions with verifiable answers to judged partial solutions."""
