"""The whole recipe as stages, each a command of its own: pairs, towers, joint training, student, evaluation, export."""
