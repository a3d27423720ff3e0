"""A run from its settings to its report: preparation, building, training, export."""
