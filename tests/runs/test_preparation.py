"""What a run prepares before it trains: the training text."""

import pytest

from cacse_trainer.errors import UserError
from cacse_trainer.runs.preparation import load_training_text
from cacse_trainer.settings.arguments import CacseTrainingArguments, DataArguments


def test_a_stream_is_shuffled(tmp_path):
    lines = [f"sentence {i}" for i in range(60)]
    (tmp_path / "text.txt").write_text("\n".join(lines))

    def streamed(buffer: int, seed: int = 1) -> list[str]:
        args = CacseTrainingArguments(str(tmp_path), use_cpu=True, max_steps=1, seed=seed)
        data_args = DataArguments(train_file=str(tmp_path / "text.txt"), streaming=True, shuffle_buffer=buffer)
        return [row["text"] for row in load_training_text(data_args, args)[0]]

    found = streamed(20)
    assert sorted(found) == sorted(lines) and found != lines and found == streamed(20) != streamed(20, seed=2)
    assert streamed(1) == lines
    with pytest.raises(UserError, match="shuffle_buffer is 0"):
        streamed(0)
