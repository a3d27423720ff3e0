"""Work on several cores: the same results in the same order, nothing left running, torch's threads as they were."""

import threading
import time
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

from cacse_trainer.compute.cores import over_cores
from cacse_trainer.encoding.embedder import Embedder
from tests.tolerances import assert_near


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    assert torch.get_num_threads() == 3
    torch.set_num_threads(before)


def meet(count):
    """An item of work that, but for item 0, ends only when so many threads are at one."""
    barrier = threading.Barrier(count, timeout=60)

    def run(item):
        if item:
            barrier.wait()
        return item * item, torch.get_num_threads(), threading.get_ident()

    return run


def test_results_in_order_from_several_threads_of_one_core():
    told = []
    (_, cores, thread), *others = results = over_cores(meet(3), range(10), nullcontext, told.append, 3)
    assert [value for value, _, _ in results] == [i * i for i in range(10)]
    assert cores == 3 and thread == threading.get_ident()  # the first, alone
    assert {cores for _, cores, _ in others} == {1}
    assert len({thread for _, _, thread in others} - {threading.get_ident()}) == 3
    assert told[0] == 0 and sorted(told) == list(range(10))


def test_fewer_items_than_cores_share_them():
    torch.set_num_threads(5)
    assert [cores for _, cores, _ in over_cores(meet(2), range(3), nullcontext, lambda item: None, 5)] == [5, 2, 2]
    assert torch.get_num_threads() == 5
    torch.set_num_threads(3)


@pytest.mark.parametrize(("items", "cores"), [(range(4), 1), (range(1), 3), (range(0), 3)])
def test_in_the_callers_thread_where_there_is_nothing_to_share(items, cores):
    found = over_cores(lambda item: (item, threading.get_ident()), items, nullcontext, lambda item: None, cores)
    assert found == [(item, threading.get_ident()) for item in items]


def test_a_call_within_a_call_runs_in_its_own_thread():
    def run(item):
        return over_cores(lambda i: threading.get_ident(), range(3), nullcontext, lambda i: None, 3)

    for threads in over_cores(run, range(3), nullcontext, lambda item: None, 3):
        assert len(set(threads)) == 1


@pytest.mark.parametrize("where", ["run", "around", "told"])
def test_an_error_is_raised_and_no_further_item_begun(where):
    begun = []

    def run(item):
        begun.append(item)
        time.sleep(0.001)
        if where == "run" and item == 1:
            raise ValueError("item 1")
        return item

    def told(item):
        if where == "told" and item == 5:
            raise ValueError("item 1")

    @contextmanager
    def around():
        if where == "around" and threading.current_thread() is not threading.main_thread():
            raise ValueError("item 1")
        yield

    threads = threading.active_count()
    with pytest.raises(ValueError, match="item 1"):
        over_cores(run, range(10_000), around, told, 3)
    assert len(begun) < 10_000 and threading.active_count() == threads
    assert over_cores(lambda item: item, range(3), nullcontext, lambda item: None, 3) == [0, 1, 2]


def test_sentences_over_cores(tiny_tokenizer):
    """The threads keep no graph and see the caller's autocast; every sentence is told of once."""
    layer = torch.nn.Linear(1, 4)
    without_graph = []

    def embed(input_ids, attention_mask, **rest):
        without_graph.append(torch.is_inference_mode_enabled())
        return layer(input_ids.float().sum(dim=1, keepdim=True) / 100)

    sentences = [f"the cat sat {i}" for i in range(40)]
    told = []

    def vectors(cores):
        return Embedder(embed, tiny_tokenizer, 8, "cpu", cores=cores).begin(sentences, batch_size=3)(told.append)

    plain = vectors(3)
    assert sum(told) == 40 and len(without_graph) == 14 and all(without_graph)
    assert_near(plain, vectors(1), terms=8)
    with torch.autocast("cpu", torch.bfloat16):
        half = vectors(3)
    assert np.array_equal(half, torch.from_numpy(half).bfloat16().float().numpy()) and not np.array_equal(half, plain)
