"""From one's own raw text to a better encoder: rows, held-out parts, training by a budget, a choice, a verdict."""
