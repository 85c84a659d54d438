"""
Tests the numbers of the published Dual SSAST (PhDHyosunChoi/hssast), through the conversion command and
from_pretrained, for every pooling and classifier of its code.
"""

import pytest
import torch
from golden import arrays, assert_close, assert_gradients_close, checkpoint, convert, grid_options, settings

from conversion.__main__ import main
from modeling_dual_ssast import DualSSASTConfig, DualSSASTForAudioClassification, DualSSASTModel

pytestmark = pytest.mark.golden

DESCRIPTION = settings("dual_ssast")
FINE_TUNED = {tag: found for tag, found in DESCRIPTION["fine_tuned"].items() if tag != "baseline"}
CASES = [(tag, pooling) for tag, found in FINE_TUNED.items() for pooling in found["poolings"]]


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Returns a function: name of a model, pooling -> its converted folder; each is made once."""
    folders = {}

    def folder(tag: str, pooling: str):
        if (tag, pooling) not in folders:
            found = DESCRIPTION["fine_tuned"][tag]
            options = grid_options(found["input_tdim"], found["fstride"], found["tstride"])
            family, names = ("ssast", []) if tag == "baseline" else ("dual-ssast", ["--pooling", pooling])
            place = tmp_path_factory.mktemp(tag)
            folders[tag, pooling] = convert(family, found["recipe"], place, *options, *names)
        return folders[tag, pooling]

    return folder


def inputs_of(tag: str) -> torch.Tensor:
    return torch.from_numpy(arrays("dual_ssast")[DESCRIPTION["fine_tuned"][tag]["input"]])


def expected_of(tag: str, pooling: str) -> dict:
    start = f"{tag}_{pooling}_"
    return {name.removeprefix(start): value for name, value in arrays("dual_ssast").items() if name.startswith(start)}


@pytest.mark.parametrize(("tag", "pooling"), [*CASES, ("baseline", "mean")])
def test_fused_vector_logits_loss_and_gradients(converted, tag, pooling):
    found, expected = DESCRIPTION["fine_tuned"][tag], expected_of(tag, pooling)
    model = DualSSASTForAudioClassification.from_pretrained(converted(tag, pooling))
    with torch.no_grad():
        assert_close(model.dual_ssast(inputs_of(tag)).pooler_output, expected["fused"], atol=5e-5)
    output = model(inputs_of(tag), labels=torch.tensor(found["ce_labels"]))
    assert_close(output.logits, expected["logits"], atol=2e-5)
    assert_close(output.loss, expected["ce_loss"], atol=2e-5)
    output.loss.backward()
    encoder, classifier = model.dual_ssast, model.classifier
    step = DESCRIPTION["grad_patch_proj_output_step"]
    assert_gradients_close(encoder.embeddings.projection.weight.grad[::step], expected["grad_patch_proj"])
    # The norm is applied four times, and its terms cancel.
    assert_close(encoder.layernorm.weight.grad, expected["grad_norm_weight"], atol=0, share=2e-4)
    assert_close(encoder.layernorm.bias.grad, expected["grad_norm_bias"], atol=0, share=2e-4)
    assert_gradients_close(classifier.layernorm.weight.grad, expected["grad_head_norm0"])
    assert_gradients_close(classifier.dense.weight.grad, expected["grad_head_last"])
    if "grad_head_first" in expected:
        step = DESCRIPTION["grad_head_first_output_step"]
        assert_gradients_close(classifier.hidden[0].weight.grad[::step], expected["grad_head_first"])


@torch.no_grad()
@pytest.mark.parametrize("tag", FINE_TUNED)
def test_states(converted, tag):
    expected, step = arrays("dual_ssast"), FINE_TUNED[tag]["token_step"]
    model = DualSSASTModel.from_pretrained(converted(tag, FINE_TUNED[tag]["poolings"][0]))
    states = model(inputs_of(tag), output_hidden_states=True).hidden_states
    if f"{tag}_hidden_states" in expected:
        assert_close(torch.stack(states)[:, :, ::step], expected[f"{tag}_hidden_states"], atol=2e-5)
    assert model.config.fused_layers == [5, 12]
    fused = [states[layer][:, ::step] for layer in model.config.fused_layers]
    if f"{tag}_normed_once" in expected:
        assert_close(
            torch.stack([model.layernorm(state) for state in fused]), expected[f"{tag}_normed_once"], atol=2e-5
        )
    twice = [state[:, ::step] for state in model.fused_states(states)]
    assert_close(torch.stack(twice), expected[f"{tag}_normed_twice"], atol=2e-5)


@torch.no_grad()
@pytest.mark.parametrize("frames", [512, 128])
def test_positions_from_the_pretrained_file(frames, tmp_path):
    """The authors' files that training starts from are SSAST's."""
    folder = convert("ssast", DESCRIPTION["pretrained"]["recipe"], tmp_path)
    model = DualSSASTModel.from_pretrained(folder, max_length=frames, frequency_stride=10, time_stride=10)
    positions = model.embeddings.position_embeddings[:, :, :: DESCRIPTION["pos_embed_dim_step"]]
    assert_close(positions, arrays("dual_ssast")[f"pos_embed_T{frames}_f10_t10"], atol=1e-6)


@pytest.mark.parametrize("tag", [*FINE_TUNED, "baseline"])
def test_the_original_file_comes_back(converted, tag, tmp_path, capsys):
    """All but timm's heads, bit for bit."""
    found = DESCRIPTION["fine_tuned"][tag]
    folder = converted(tag, found["poolings"][0])
    assert main(["export-ssast", str(folder), str(tmp_path / "out.pth"), "--verify"]) == 0
    assert "largest difference 0" in (out := capsys.readouterr().out)
    if tag != "baseline":
        assert f"pooling_ty {found['poolings'][0]}, mlp_layers {found['mlp_layers']}" in out
    original, exported = checkpoint(found["recipe"]), torch.load(tmp_path / "out.pth", weights_only=True)
    assert set(exported) == set(original)
    for name, tensor in original.items():
        is_unused = name.startswith(("module.v.head.", "module.v.head_dist."))
        assert torch.equal(exported[name], torch.zeros_like(tensor) if is_unused else tensor), name


def test_the_base_model_has_the_published_shapes():
    published = settings("dual_ssast_base_shapes")
    published = published.get("shapes", published)
    config = DualSSASTConfig.published("mean_max", mlp_layers=4, num_labels=7)
    with torch.device("meta"):
        model = DualSSASTForAudioClassification(config)
    assert [tuple(linear.weight.shape) for linear in model.classifier.hidden] == [(1536, 1536)]
    count = sum(parameter.numel() for parameter in model.parameters())
    unused = ("module.v.head.", "module.v.head_dist.")
    theirs = {name: shape for name, shape in published.items() if not name.startswith(unused)}
    assert count == sum(int(torch.Size(shape).numel()) for shape in theirs.values())
