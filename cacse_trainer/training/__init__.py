"""The trainers, and what keeps a run whole: checkpoints, exact resume, signals, guards."""
