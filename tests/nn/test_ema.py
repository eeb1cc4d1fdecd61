import pytest
import torch
from torch import nn

from fewgen.errors import CheckpointError, ConfigError
from fewgen.nn.codebook import Codebook
from fewgen.nn.ema import EMA


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def move(net, amount):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(amount)


def test_follows_with_the_warm_up_decay():
    net = make()
    ema = EMA(net, decay=0.5)
    expected = net[0].bias.detach().clone().double()
    for n in range(20):
        move(net, 0.1 * (n + 1))
        ema.update(net)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * net[0].bias.detach().double()
    with ema.applied_to(net):
        torch.testing.assert_close(net[0].bias.detach().double(), expected, rtol=1e-5, atol=1e-6)


def test_constant_weights_are_their_own_average():
    net = make()
    ema = EMA(net, decay=0.999)
    before = {name: p.clone() for name, p in net.state_dict().items()}
    for _ in range(5):
        ema.update(net)
    with ema.applied_to(net):
        assert all(torch.equal(before[name], p) for name, p in net.state_dict().items())


def test_swapping_in_gives_the_weights_back_bit_for_bit_also_after_an_error():
    net = make()
    ema = EMA(net)
    net(torch.randn(8, 3))  # moves the buffers
    move(net, 0.37)
    before = {name: p.clone() for name, p in net.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), ema.applied_to(net) as same:
        assert same is net
        assert not torch.equal(net[0].weight, before["0.weight"])
        assert net[1].num_batches_tracked == 0
        raise RuntimeError("stop")
    assert all(torch.equal(before[name], p) for name, p in net.state_dict().items())


def test_buffers_are_copied_whatever_their_type():
    net = nn.Sequential(nn.Linear(4, 4), Codebook(8, 4))
    ema = EMA(net)
    net(torch.randn(20, 4))
    ema.update(net)
    other = nn.Sequential(nn.Linear(4, 4), Codebook(8, 4))
    ema.copy_to(other)
    assert all(torch.equal(a, b) for a, b in zip(net.buffers(), other.buffers(), strict=True))
    assert bool(other[1].initialised)


def test_state_round_trip_continues_exactly():
    net = make()
    first = EMA(net, decay=0.9)
    for _ in range(3):
        move(net, 0.1)
        first.update(net)
    state = first.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    second = EMA(make(), decay=0.9)
    second.load_state_dict(state)
    move(net, 0.1)
    first.update(net)
    second.update(net)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert second.n_updates == 4


def test_another_network_is_refused():
    ema = EMA(make())
    with pytest.raises(CheckpointError, match="another network"):
        ema.update(nn.Linear(3, 4))
    with pytest.raises(CheckpointError, match="does not fit"):
        ema.load_state_dict(EMA(nn.Linear(3, 4)).state_dict())
    with pytest.raises(ConfigError, match="decay"):
        EMA(make(), decay=1.0)


def test_a_module_without_parameters_is_followed_too():
    net = Codebook(8, 4)
    ema = EMA(net)
    net(torch.randn(20, 4))
    ema.update(net)
    with ema.applied_to(net):
        assert bool(net.initialised)
