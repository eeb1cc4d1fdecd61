import copy
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.reference import naive_losses as naive
from vector_quantize_pytorch import VectorQuantize

from fewgen.errors import ConfigError, ShapeError
from fewgen.nn.codebook import Codebook


def latents(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(codebook, width, n=64):
    """The codebook after its first batch, in evaluation mode."""
    codebook.train()(latents(n, width))
    return codebook.eval()


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("share", [False, True])
def test_the_gradient_passes_straight_through(update, share):
    codebook = trained(Codebook(16, 4, groups=2, share=share, update=update), 8)
    z = latents(5, 3, 3, 8, seed=1).requires_grad_()
    out = codebook(z)
    upstream = latents(5, 3, 3, 8, seed=2)
    (out.codes * upstream).sum().backward()
    assert torch.equal(z.grad, upstream)
    assert all(parameter.grad is None for parameter in codebook.parameters())
    assert torch.equal(out.codes, codebook.lookup(out.indices))  # the values are exactly codes


def test_codebook_loss_moves_only_selected_codes_and_commitment_only_the_latents():
    codebook = trained(Codebook(32, 4, update="gradient"), 4)
    z = latents(6, 4, seed=1).requires_grad_()
    out = codebook(z)
    out.codebook_loss.backward(retain_graph=True)
    assert z.grad is None
    selected = torch.zeros(32, dtype=torch.bool)
    selected[out.indices.flatten()] = True
    touched = codebook.codes.grad[0].abs().sum(1) > 0
    assert torch.equal(touched, selected)

    codebook.codes.grad = None
    out.commitment_loss.backward()
    assert codebook.codes.grad is None
    torch.testing.assert_close(z.grad, 0.25 * 2 * (z - out.codes).detach() / 6)


def test_losses_are_summed_over_features_and_averaged_over_the_batch():
    codebook = trained(Codebook(16, 4, update="gradient", commitment_weight=0.5), 4)
    z = latents(6, 2, 2, 4, seed=1)
    out = codebook(z)
    squared = ((z - out.codes) ** 2).double().numpy().reshape(6, -1).sum(1).mean()
    assert out.codebook_loss.item() == pytest.approx(squared, rel=1e-5)
    assert out.commitment_loss.item() == pytest.approx(0.5 * squared, rel=1e-5)
    doubled = codebook(z.repeat(2, 1, 1, 1))
    torch.testing.assert_close(doubled.codebook_loss, out.codebook_loss)
    torch.testing.assert_close(doubled.commitment_loss, out.commitment_loss)
    torch.testing.assert_close(doubled.perplexity, out.perplexity)


@pytest.mark.parametrize(("groups", "share"), [(1, False), (2, False), (3, False), (3, True)])
def test_indices_are_the_brute_force_argmin(groups, share):
    codebook = trained(Codebook(17, 4, groups=groups, share=share), 4 * groups)
    z = latents(9, 2, 4 * groups, seed=1) + 100.0  # a large offset costs float32 digits
    with torch.no_grad():
        codebook.codes.add_(100.0)
    indices = codebook(z).indices
    assert indices.shape == (9, 2, groups)
    assert indices.dtype == torch.long
    for g in range(groups):
        table = codebook.codes[0 if share else g].double().numpy()
        chunk = z[..., 4 * g : 4 * g + 4].reshape(-1, 4).double().numpy()
        expected = naive.nearest(chunk, table)
        assert np.array_equal(indices[..., g].flatten().numpy(), expected)
        farthest = ((chunk[:, None] - table[None]) ** 2).sum(2).argmax(1)
        assert not np.array_equal(farthest, expected)  # the listing's argmax would be caught


def test_agrees_with_vector_quantize_pytorch():
    codebook = trained(Codebook(32, 8), 8)
    rival = VectorQuantize(dim=8, codebook_size=32, commitment_weight=0.25, rotation_trick=False)
    with torch.no_grad():
        rival._codebook.embed.copy_(codebook.codes)
    rival.eval()
    z = latents(20, 5, 8, seed=1)
    codes, indices, _ = rival(z)
    out = codebook(z)
    assert torch.equal(out.indices[..., 0], indices)
    torch.testing.assert_close(out.codes, codes)


def test_chunks_of_the_distance_matrix_change_nothing(monkeypatch):
    codebook = trained(Codebook(16, 4, groups=2), 8)
    z = latents(50, 8, seed=1)
    whole = codebook(z)
    monkeypatch.setattr("fewgen.nn.codebook._CHUNK_ELEMENTS", 16 * 2 * 7)
    chunked = codebook(z)
    assert torch.equal(whole.indices, chunked.indices)


def test_a_code_at_the_latent_is_selected_and_costs_nothing():
    codebook = trained(Codebook(16, 4, update="gradient"), 4)
    z = latents(3, 4, seed=1)
    with torch.no_grad():
        codebook.codes[0, [3, 7, 11]] = z
    out = codebook(z)
    assert out.indices.flatten().tolist() == [3, 7, 11]
    assert out.codebook_loss == 0
    assert out.commitment_loss == 0


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 12),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from(["ema", "gradient"]),
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(1, 5),
)
def test_shapes_and_ranges_for_any_size(size, dim, groups, share, update, positions, batch):
    codebook = Codebook(size, dim, groups=groups, share=share, update=update, restart_after=2)
    z = latents(batch, *positions, groups * dim)
    for _ in range(4):
        out = codebook(z)
        assert out.codes.shape == z.shape
        assert out.codes.dtype == z.dtype
        assert out.indices.shape == (batch, *positions, groups)
        assert out.indices.min() >= 0
        assert out.indices.max() < size
        assert 1 - 1e-5 <= out.perplexity <= size + 1e-3
        assert torch.isfinite(out.commitment_loss + out.codebook_loss)
    assert codebook.lookup(out.indices).shape == z.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_come_back_as_they_came(dtype):
    out = trained(Codebook(8, 4), 4)(latents(3, 4).to(dtype))
    assert out.codes.dtype == dtype
    assert out.commitment_loss.dtype == torch.float32


def test_perplexity_counts_codes_in_use():
    codebook = Codebook(4, 1, init="uniform", update="gradient").eval()
    with torch.no_grad():
        codebook.codes.copy_(torch.tensor([[[0.0], [1.0], [2.0], [3.0]]]))
    assert codebook(torch.tensor([[0.0], [1.0], [2.0], [3.0]])).perplexity.item() == pytest.approx(4.0)
    assert codebook(torch.tensor([[1.0], [1.0]])).perplexity.item() == pytest.approx(1.0)
    # Shares 3/4 and 1/4: exp(0.5623351).
    mixed = codebook(torch.tensor([[0.0], [0.0], [0.0], [2.0]])).perplexity
    assert mixed.item() == pytest.approx(1.7547654, abs=1e-5)


def test_ema_update_equals_the_naive_one():
    codebook = Codebook(6, 3, groups=2, decay=0.9, restart_after=0)
    codebook(latents(40, 6))
    before = {name: buffer.double().numpy() for name, buffer in copy.deepcopy(codebook).named_buffers()}
    z = latents(30, 6, seed=1)
    out = codebook(z)
    assert out.codebook_loss == 0
    for g in range(2):
        codes, size, total = naive.ema_step(
            before["codes"][g],
            before["cluster_size"][g],
            before["code_sum"][g],
            z[:, 3 * g : 3 * g + 3].double().numpy(),
            out.indices[:, g].numpy(),
            0.9,
        )
        np.testing.assert_allclose(codebook.codes[g].numpy(), codes, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(codebook.cluster_size[g].numpy(), size, rtol=1e-5)
        np.testing.assert_allclose(codebook.code_sum[g].numpy(), total, rtol=1e-4, atol=1e-6)


def test_ema_finds_the_clusters():
    centres = torch.tensor([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0]])
    codebook = Codebook(3, 2, decay=0.8)
    for step in range(60):
        rows = torch.arange(90) % 3
        codebook(centres[rows] + 0.1 * latents(90, 2, seed=step))
    distance = torch.cdist(centres, codebook.codes[0]).amin(1)
    assert (distance < 0.1).all()


def test_an_idle_code_stays_where_it_is():
    codebook = Codebook(4, 2, restart_after=0, decay=0.9)
    corners = torch.tensor([[3.0, 3.0], [-3.0, 3.0], [3.0, -3.0], [-3.0, -3.0]])
    codebook(corners)
    start = codebook.codes.clone()
    for _ in range(400):  # long enough for 0.9 ** n to fall below the smoothing
        codebook(corners[:1].repeat(4, 1))
    assert torch.allclose(codebook.codes, start, atol=1e-3)


def test_evaluation_mode_changes_nothing():
    codebook = trained(Codebook(8, 4), 4)
    before = {name: tensor.clone() for name, tensor in codebook.state_dict().items()}
    codebook(latents(20, 4, seed=5) + 3.0)
    assert all(torch.equal(before[name], tensor) for name, tensor in codebook.state_dict().items())
    fresh = Codebook(8, 4).eval()
    fresh(latents(20, 4))
    assert not fresh.initialised


def test_initialisation_from_many_latents_covers_them():
    z = latents(500, 4)
    from_data, uniform = (
        Codebook(64, 4, update="gradient"),
        Codebook(64, 4, update="gradient", init="uniform"),
    )
    out = from_data(z)
    assert bool(from_data.initialised)
    assert out.perplexity > 40
    assert uniform.codes.abs().max() <= 1 / 64
    assert from_data(z).codebook_loss < 0.5 * uniform(z).codebook_loss


def test_ten_words_and_512_codes_give_each_word_a_code_that_it_keeps():
    words = latents(10, 20)
    labels = torch.randint(10, (64,), generator=torch.Generator().manual_seed(1))
    for update in ("ema", "gradient"):
        codebook = Codebook(512, 20, update=update, restart_after=5)
        first = codebook(words[labels])
        assert first.commitment_loss == 0  # a code for every word
        for _ in range(40):
            out = codebook(words[labels])
        assert len(out.indices.unique()) == len(labels.unique())
        assert torch.equal(out.indices, first.indices)


def test_dead_codes_restart_at_badly_served_latents():
    codebook = Codebook(4, 2, init="uniform", restart_after=3, update="gradient")
    with torch.no_grad():
        codebook.codes.copy_(torch.tensor([[[0.0, 0.0], [50.0, 50.0], [60.0, 60.0], [70.0, 70.0]]]))
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    used = [len(codebook(z).indices.unique()) for _ in range(5)]
    assert used == [1, 1, 1, 4, 4]
    never = Codebook(4, 2, init="uniform", restart_after=0, update="gradient")
    with torch.no_grad():
        never.codes.copy_(torch.tensor([[[0.0, 0.0], [50.0, 50.0], [60.0, 60.0], [70.0, 70.0]]]))
    assert [len(never(z).indices.unique()) for _ in range(5)] == [1] * 5


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("stop", [0, 1, 7])
def test_resume_is_bit_exact(update, stop):
    def make():
        return Codebook(32, 4, groups=2, update=update, restart_after=3, seed=5)

    def run(codebook, steps):
        outputs = []
        for step in steps:
            # Few latents, moving away: codes die and restart.
            out = codebook(latents(12, 8, seed=step) + 0.3 * step)
            outputs.append(out.codes)
        return outputs

    whole = make()
    expected = run(whole, range(15))
    first = make()
    got = run(first, range(stop))
    second = make()
    second.load_state_dict({name: tensor.clone() for name, tensor in first.state_dict().items()})
    got += run(second, range(stop, 15))
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    codebook = Codebook(16, 4, restart_after=1)
    for step in range(5):
        codebook(latents(8, 4, seed=step))
    assert torch.equal(before, torch.get_rng_state())


def test_nan_latents_do_not_poison_the_codes():
    codebook = Codebook(8, 4)
    bad = torch.full((5, 4), float("nan"))
    assert codebook(bad).commitment_loss.isnan()
    assert not codebook.initialised
    codebook(latents(20, 4))
    codebook(bad)
    assert codebook.codes.isfinite().all()


def test_bad_input_is_named():
    codebook = Codebook(8, 4, groups=2)
    with pytest.raises(ShapeError, match=r"2 \* 4 = 8 \(channels last\)"):
        codebook(latents(5, 4))
    with pytest.raises(ShapeError, match="empty"):
        codebook(torch.zeros(0, 8))
    with pytest.raises(ShapeError, match="groups = 2"):
        codebook.lookup(torch.zeros(3, dtype=torch.long))
    with pytest.raises(ShapeError, match="numbered 0 to 7"):
        codebook.lookup(torch.tensor([[0, 8]]))
    for wrong in (
        {"update": "adam"},
        {"init": "zeros"},
        {"decay": 1.0},
        {"groups": 0},
        {"restart_after": -1},
    ):
        with pytest.raises(ConfigError):
            Codebook(**{"codebook_size": 8, "codebook_dim": 4, **wrong})


def _train_in_two(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    codebook = Codebook(6, 3, restart_after=2)
    for step in range(6):
        codebook(latents(20, 3, seed=10 * step + rank))
    torch.save(codebook.state_dict(), os.path.join(folder, f"{rank}.pt"))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_keep_the_same_codes(tmp_path):
    torch.multiprocessing.spawn(_train_in_two, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("update", ["ema", "gradient"])
@pytest.mark.parametrize("share", [False, True])
def test_codes_found_elsewhere_replace_all_tables_and_are_kept(update, share):
    codebook = Codebook(8, 3, groups=2, share=share, update=update)
    codebook.train()(latents(20, 6))
    codebook.idle_steps.fill_(5)
    tables = 1 if share else 2
    for codes in (latents(8, 3, seed=1), latents(tables, 8, 3, seed=2)):
        codebook.start_from(codes)
        assert torch.equal(codebook.codes.detach(), codes.expand(tables, 8, 3))
        assert int(codebook.idle_steps.sum()) == 0
    if update == "ema":
        assert torch.equal(codebook.code_sum, codebook.codes)
        assert torch.equal(codebook.cluster_size, torch.ones(tables, 8))
    # A new codebook that starts from codes is not initialised by its first batch.
    fresh = Codebook(8, 3, groups=2, share=share, update=update, decay=0.0)
    fresh.start_from(latents(8, 3, seed=1))
    assert bool(fresh.initialised)
    z = latents(8, 3, seed=1).repeat(1, 2)
    found = fresh.train()(z)
    torch.testing.assert_close(found.codes, z)


@pytest.mark.parametrize("wrong", [latents(7, 3), latents(8, 2), latents(1, 8, 3), latents(3)])
def test_codes_of_another_shape_are_refused(wrong):
    codebook = Codebook(8, 3, groups=2)
    with pytest.raises(ShapeError, match=r"\(2, 8, 3\)"):
        codebook.start_from(wrong)
    with pytest.raises(ShapeError, match="NaN"):
        codebook.start_from(torch.full((8, 3), torch.nan))
