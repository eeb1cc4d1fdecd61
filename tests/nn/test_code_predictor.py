"""The transformer that predicts codes, and the draws from it."""

import pytest
import torch

from fewgen.errors import ConfigError, ShapeError
from fewgen.nn.code_predictor import CodePredictor, cosine_share, gumbel_codes, sample_codes

B, L, N, D, C = 3, 4, 7, 6, 5


def predictor(**more):
    torch.manual_seed(0)
    return CodePredictor(L, N, D, C, width=8, n_layers=2, n_heads=2, **more).eval()


def inputs():
    rng = torch.Generator().manual_seed(1)
    draw = [torch.randn(shape, generator=rng) for shape in ((B, L, D), (B, C), (N, D))]
    masked = torch.rand(B, L, generator=rng) < 0.5
    return draw[0], masked, draw[1], draw[2]


@pytest.mark.parametrize("tied", [True, False])
def test_every_token_gets_logits_of_every_code_and_rows_are_independent(tied):
    net = predictor(tied=tied)
    tokens, masked, category, codes = inputs()
    found = net(tokens, masked, category, codes)
    assert found.logits.shape == (B, L, N)
    assert found.features.shape == (B, L, D)
    order = torch.tensor([2, 0, 1])
    turned = net(tokens[order], masked[order], category[order], codes)
    assert torch.allclose(turned.logits, found.logits[order], atol=1e-5)


def test_tied_logits_are_products_with_the_codes():
    net = predictor()
    tokens, masked, category, codes = inputs()
    found = net(tokens, masked, category, codes)
    doubled = net(tokens, masked, category, 2.0 * codes)
    assert torch.allclose(doubled.logits, 2.0 * found.logits, atol=1e-5)  # it has no bias yet
    of_layer = net(tokens, masked, category, codes.expand(L, -1, -1))
    assert torch.allclose(of_layer.logits, found.logits, atol=1e-5)


def test_it_starts_from_how_often_each_token_is_each_code():
    net = predictor()
    tokens, masked, category, codes = inputs()
    net.start(torch.arange(L * N).reshape(L, N) ** 2)
    chances = torch.softmax(net(tokens, masked, category, torch.zeros(N, D)).logits, -1)
    counts = (torch.arange(L * N).reshape(L, N) ** 2 + 1.0).expand(B, -1, -1)
    assert torch.allclose(chances, counts / counts.sum(2, keepdim=True), atol=1e-6)


def test_masked_tokens_are_not_seen_and_the_others_and_the_category_are():
    net = predictor()
    tokens, _, category, codes = inputs()
    masked = torch.tensor([[True, False, True, False]]).expand(B, -1)
    before = net(tokens, masked, category, codes).logits
    hidden, seen = tokens.clone(), tokens.clone()
    hidden[:, [0, 2]] += 3.0
    seen[:, 1] += 3.0
    assert torch.equal(net(hidden, masked, category, codes).logits, before)
    assert not torch.allclose(net(seen, masked, category, codes).logits, before)
    assert not torch.allclose(net(tokens, masked, category.flip(0), codes).logits, before)
    all_masked = torch.ones(B, L, dtype=torch.bool)
    only_class = net(tokens, all_masked, category[:1].expand(B, -1), codes).logits
    assert torch.allclose(only_class[0], only_class[1])


@pytest.mark.parametrize("injection", ["cross", "adaln", "token"])
def test_prompts_start_without_effect_and_rows_of_zeros_are_none(injection):
    net = predictor(prompt_dim=3, injection=injection)
    given = inputs()
    prompt = torch.randn(B, 3, generator=torch.Generator().manual_seed(2))
    assert torch.equal(net(*given, prompt).logits, net(*given).logits)
    net(*given, prompt).logits.square().sum().backward()
    readers = {
        name: p for name, p in net.named_parameters() if "add_prompt" in name or name == "read_prompt.weight"
    }
    assert readers
    assert all(float(p.grad.abs().sum()) > 0 for p in readers.values())
    with torch.no_grad():
        for p in readers.values():
            p += torch.randn(p.shape, generator=torch.Generator().manual_seed(3))
    prompt[1] = 0.0
    changed = (net(*given, prompt).logits - net(*given).logits).abs().amax((1, 2)) > 1e-3
    assert changed.tolist() == [True, False, True]
    with pytest.raises(ShapeError, match=r"\(B, 3\)"):
        net(*given, prompt[:, :2])
    with pytest.raises(ShapeError, match="Prompts"):
        predictor()(*given, prompt)


def test_cross_attention_to_a_prompt_is_that_of_plain_loops():
    net = predictor(prompt_dim=3)
    block = net.blocks[0]
    x, prompt = torch.randn(B, 5, 8), torch.randn(B, 3)
    k, v = block.read_prompt(prompt).reshape(B, 2, 4, 8).unbind(1)
    q = block.query(block.norm_prompt(x))
    with torch.no_grad():
        block.add_prompt.weight.copy_(torch.eye(8))
    wanted = torch.zeros(B, 5, 8)
    for b in range(B):
        for head in (slice(0, 4), slice(4, 8)):
            share = torch.softmax(q[b, :, head] @ k[b, :, head].T / 2.0, 1)
            wanted[b, :, head] = share @ v[b, :, head]
    assert torch.allclose(block._read(x, prompt), wanted, atol=1e-5)


def test_codes_drawn_by_gumbel_are_one_and_pass_gradients_to_all_logits():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(20_000, -1).clone().requires_grad_()
    uniforms = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0))
    rows = gumbel_codes(logits, uniforms, 0.5)
    assert torch.equal(rows.detach().round(), rows.detach().round().clamp(0, 1))
    assert torch.allclose(rows.detach(), rows.detach().round(), atol=1e-6)
    assert torch.equal(rows.detach().round().sum(1), torch.ones(20_000))
    shares = rows.detach().mean(0)
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.01)
    assert torch.equal(gumbel_codes(logits, uniforms, 5.0).argmax(1), rows.argmax(1))
    (rows * torch.randn(4, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert (logits.grad[:100] != 0).all()


def test_bad_sizes_are_refused():
    net = predictor()
    tokens, masked, category, codes = inputs()
    with pytest.raises(ShapeError, match=rf"\(B, {L}, {D}\)"):
        net(tokens[:, :2], masked[:, :2], category, codes)
    with pytest.raises(ConfigError, match="divisible by its 3 heads"):
        CodePredictor(L, N, D, C, width=8, n_heads=3)


def test_draws_follow_the_probabilities_within_top_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    uniforms = (torch.arange(1000) + 0.5) / 1000
    drawn, chance = sample_codes(logits.expand(1000, -1), uniforms)
    assert torch.bincount(drawn, minlength=4).tolist() == [500, 300, 150, 50]
    assert torch.allclose(chance, torch.tensor([0.5, 0.3, 0.15, 0.05])[drawn])
    # The likeliest codes whose earlier ones do not reach 0.7 yet: two, with 5/8 and 3/8.
    drawn, _ = sample_codes(logits.expand(1000, -1), uniforms, top_p=0.7)
    assert torch.bincount(drawn, minlength=4).tolist() == [625, 375, 0, 0]
    drawn, _ = sample_codes(logits.flip(0).expand(1000, -1), uniforms, temperature=0)
    assert (drawn == 3).all()
    sharp, _ = sample_codes(logits.expand(1000, -1), uniforms, temperature=0.5)
    wanted = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    counts = torch.bincount(sharp, minlength=4) / 1000
    assert torch.allclose(counts, wanted / wanted.sum(), atol=2e-3)


def test_the_share_of_masks_falls_from_all_to_none_along_a_cosine():
    shares = cosine_share(torch.tensor([0.0, 0.5, 1.0]))
    assert torch.allclose(shares, torch.tensor([1.0, 0.5**0.5, 0.0]), atol=1e-6)
