import torch

from fewgen.fitting.seeds import global_seed


def test_global_seed_leaves_the_state_as_it_was():
    before = torch.get_rng_state()
    with global_seed(torch.device("cpu"), 1, "a"):
        first = torch.rand(3)
    with global_seed(torch.device("cpu"), 1, "a"):
        assert torch.equal(first, torch.rand(3))
    assert torch.equal(before, torch.get_rng_state())
