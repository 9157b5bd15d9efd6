"""Causal language models of Hugging Face folders: log-probabilities are those of the package itself, and gradients
those at its word embeddings."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service.artefacts.huggingface.library import transformers
from service.artefacts.loading import LoadedModel, load_model
from service.catalog.inputs.prompts import PromptInputs
from service.catalog.outputs.tokens import Continuation, Tokens
from service.domain import Floats, OutputSpace
from service.engine.kernels.evaluated import EvaluatedPoints
from service.engine.kernels.gradient import GradientKernel
from service.engine.kernels.kernel import DeployedKernel, Segment
from service.engine.kernels.network import Network
from service.errors import CatalogError
from service.methods.questions import Deployed, Points, Readout
from service.numerics.links import IDENTITY
from tests.causal_folders import CONFIGURATIONS, LENGTH, save_causal_folder
from tests.huggingface_folders import added

CPU = torch.device("cpu")
SPACE = OutputSpace.LOG_PROBABILITY
PROMPT, OWN, OTHER = "Nobody likes waiting in a queue", " for hours without", " being told"
STEPS = 12


def no_questions(question: str, usual: str) -> str:
    raise AssertionError(f"asked {question!r}, {usual!r}")


@dataclass(frozen=True, slots=True)
class Pair:
    """A folder as the package itself reads it, and as a worker does."""

    network: Any
    tokenizer: Any
    model: LoadedModel
    folder: Path

    @property
    def inputs(self) -> PromptInputs:
        declared = self.model.manifest.inputs
        assert isinstance(declared, PromptInputs)
        return declared

    @property
    def outputs(self) -> Tokens:
        declared = self.model.manifest.outputs
        assert isinstance(declared, Tokens)
        return declared.with_files(self.folder, self.inputs)

    def target(self, own: str = OWN, other: str | None = None) -> Continuation:
        requested = {"continuation": own} if other is None else {"continuation": own, "rather_than": other}
        target = self.outputs.read_target(requested)
        assert target is not None
        return target

    def row(self, prompt: str, target: Continuation) -> Floats:
        values = self.inputs.read({"text": prompt}, self.folder).values
        return np.array(self.inputs.with_target(values, target))

    def answers(self, *rows: Floats) -> Floats:
        answers: Floats = self.model.deployed.outputs(np.array(rows, dtype=np.float32))[SPACE].astype(np.float64)
        return answers

    def attributed(self, prompt: tuple[float, ...], target: Continuation, output: int = 0) -> Floats:
        """By place: integrated gradients of a number of the outputs, from the masked prompt."""
        ends = self.inputs.own_baseline_for(prompt), prompt
        start, end = (self.model.seen(np.array([self.inputs.with_target(row, target)])) for row in ends)
        nodes, weights = np.polynomial.legendre.leggauss(STEPS)
        question = Points(start, end[0], np.zeros(STEPS, dtype=np.intp), (nodes + 1) / 2, Readout.LOGIT, output)
        network = Network(self.model.twin, CPU, self.model.shape, self.outputs.width, IDENTITY)
        (evaluated,) = GradientKernel(network, STEPS, trace=False).run([Segment(question, 0, STEPS)])
        assert isinstance(evaluated, EvaluatedPoints)
        summed: Floats = (weights / 2 @ evaluated.contributions).reshape(self.model.shape).sum(axis=-1)
        return summed

    def log_probabilities(self, prompt: str, tokens: tuple[int, ...]) -> Floats:
        """Of each of the tokens, by the package alone."""
        ids = [*self.tokenizer(prompt)["input_ids"], *tokens]
        with torch.no_grad():
            logs = self.network(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()
        start = len(ids) - len(tokens)
        return np.array([logs[start + at - 1, token] for at, token in enumerate(tokens)])


IN_THE_GATE = {"gpt2", "llama"}
"""Places that are added and places that are turned by; the others are built of the same."""
FOLDERS = [name if name in IN_THE_GATE else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGURATIONS]


@pytest.fixture(scope="module", params=FOLDERS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.set_num_threads(1)
    source = tmp_path_factory.mktemp("folders") / request.param
    save_causal_folder(source, request.param)
    version = added(source, tmp_path_factory.mktemp("models"), ask=no_questions)
    package = transformers()
    network = package.AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager").eval()
    return Pair(network, package.AutoTokenizer.from_pretrained(source), load_model(version, CPU), version)


def test_it_answers_what_the_package_answers(pair: Pair) -> None:
    """The log-probabilities of each token of both continuations, of both in sum, and the likeliest tokens."""
    target = pair.target(other=OTHER)
    (answers,) = pair.answers(pair.row(PROMPT, target))
    own, other = (pair.log_probabilities(PROMPT, tokens) for tokens in (target.tokens, target.rather_than))
    assert min(len(own), len(other)) > 1
    np.testing.assert_allclose(answers[1 : 1 + len(own) + len(other)], [*own, *other], atol=2e-5)
    assert answers[0] == pytest.approx(own.sum() - other.sum(), abs=1e-4)
    prediction = pair.outputs.prediction_item(answers.tolist(), SPACE)
    with torch.no_grad():
        logs = pair.network(**pair.tokenizer(PROMPT, return_tensors="pt")).logits[0, -1].log_softmax(-1)
    best = torch.topk(logs, pair.outputs.likeliest)
    assert [token.id for token in prediction.next] == best.indices.tolist()
    assert [token.log_probability for token in prediction.next] == pytest.approx(best.values.tolist(), abs=2e-5)
    assert pair.outputs.default_target(answers) == Continuation((int(best.indices[0]),))


def test_two_continuations_do_not_see_each_other(pair: Pair) -> None:
    """In the artefact and in the twin, each is as likely beside the other as it is alone."""
    both, alone, other = pair.target(other=OTHER), pair.target(), pair.target(OTHER)
    rows = np.array([pair.row(PROMPT, target) for target in (both, alone, other)])
    count = len(both.tokens) + len(both.rather_than)
    encoded = torch.from_numpy(pair.model.seen(rows).astype(np.float32)).reshape(3, *pair.model.shape)
    for together, first, second in (pair.answers(*rows), pair.model.twin(encoded).detach().numpy()):
        expected = [*first[1 : 1 + len(alone.tokens)], *second[1 : 1 + len(other.tokens)]]
        np.testing.assert_allclose(together[1 : 1 + count], expected, atol=2e-5)
        assert not together[1 + count : 1 + pair.outputs.longest].any()


def test_at_the_same_points_it_agrees_with_captum_at_the_embedding_layer(pair: Pair) -> None:
    """For a continuation, for what speaks for it rather than another, and for one of its tokens."""
    from captum.attr import LayerIntegratedGradients

    target = pair.target(other=OTHER)
    prompt = pair.inputs.read({"text": PROMPT}, pair.folder).values
    baseline = pair.inputs.own_baseline_for(prompt)
    count = pair.inputs.length_of(prompt)
    layer = pair.network.get_input_embeddings()

    def of_text(tokens: tuple[int, ...]) -> Any:
        def log_probability(ids: torch.Tensor) -> torch.Tensor:
            behind = torch.tensor(tokens).expand(len(ids), -1)
            logs = pair.network(input_ids=torch.cat([ids, behind], 1)).logits.log_softmax(-1)
            chosen: torch.Tensor = logs[:, count - 1 : -1].gather(2, behind[..., None])[..., 0]
            return chosen

        return log_probability

    def theirs(tokens: tuple[int, ...], token: int | None) -> Floats:
        """Of the sum over the tokens, or of one; the embeddings of the tokens behind the prompt stay as they are."""
        of_tokens = of_text(tokens)
        attributed = LayerIntegratedGradients(
            lambda ids: of_tokens(ids).sum(1) if token is None else of_tokens(ids)[:, token], layer
        )
        ids, masked = (torch.tensor([tokens_of[:count]]).long() for tokens_of in (prompt, baseline))
        values = attributed.attribute(ids, masked, n_steps=STEPS, method="gausslegendre", internal_batch_size=STEPS)
        summed: Floats = values.sum(-1)[0, :count].detach().numpy().astype(np.float64)
        return summed

    wanted = {
        0: theirs(target.tokens, None) - theirs(target.rather_than, None),
        2: theirs(target.tokens, 1),
        1 + len(target.tokens): theirs(target.rather_than, 0),
    }
    for output, expected in wanted.items():
        ours = pair.attributed(prompt, target, output)
        np.testing.assert_allclose(ours[:count], expected, rtol=1e-5, atol=1e-5)
        assert not ours[count:].any()
        assert np.abs(ours).sum() > 0.05


@pytest.mark.filterwarnings("ignore")
def test_at_the_same_points_it_agrees_with_inseq(pair: Pair) -> None:
    """For each token of a continuation behind the tokens before it, which inseq explains as it does the prompt's."""
    inseq = pytest.importorskip("inseq")
    tokenizer = deepcopy(pair.tokenizer)
    theirs = inseq.load_model(deepcopy(pair.network), "integrated_gradients", tokenizer=tokenizer)
    asked = {"attributed_fn": "probability", "logprob": True, "n_steps": STEPS, "internal_batch_size": STEPS}
    (found,) = theirs.attribute(PROMPT, PROMPT + OWN, **asked, show_progress=False).sequence_attributions
    ids = [token.id for token in found.target]
    start = len(ids) - len(pair.target().tokens)
    assert ids == [*tokenizer(PROMPT)["input_ids"], *pair.target().tokens]
    assert tokenizer.unk_token_id == pair.inputs.mask
    for at in range(start, len(ids)):
        expected = found.target_attributions[:at, at - start].sum(-1).numpy()
        row = pair.inputs.read({"tokens": ids[:at]}).values
        target = Continuation((ids[at],))
        np.testing.assert_allclose(pair.attributed(row, target)[:at], expected, rtol=1e-5, atol=1e-5)
        assert np.abs(expected).sum() > 0.05


def test_a_row_has_the_same_bits_alone_and_amid_others(pair: Pair) -> None:
    targets = [pair.target(), pair.target(other=OTHER), pair.target(OTHER), Continuation((3,))]
    rows = np.array([pair.row(PROMPT, target) for target in targets])
    deployed = DeployedKernel(pair.model.deployed, 4, pair.model.row_type)
    together = deployed.join(deployed.run([Segment(Deployed(rows), 0, 4)]))[SPACE]
    for number in range(4):
        alone = deployed.join(deployed.run([Segment(Deployed(rows[number][None]), 0, 1)]))[SPACE]
        assert np.array_equal(alone[0], together[number])
    seen = pair.model.seen(rows)
    starts = pair.model.seen(np.where((rows >= 0) & (rows < pair.inputs.vocabulary), 5.0, rows))
    alphas, lines = np.array([0.2, 0.7]), np.zeros(2, dtype=np.intp)
    questions = [Points(starts[at][None], seen[at], lines, alphas, Readout.LOGIT, at % 2) for at in range(4)]
    kernel = GradientKernel(Network(pair.model.twin, CPU, pair.model.shape, pair.outputs.width, IDENTITY), 8)
    amid = kernel.run([Segment(question, 0, 2) for question in questions])
    for question, beside in zip(questions, amid, strict=True):
        (by_itself,) = kernel.run([Segment(question, 0, 2)])
        assert isinstance(by_itself, EvaluatedPoints)
        assert isinstance(beside, EvaluatedPoints)
        assert np.array_equal(by_itself.outputs, beside.outputs)
        assert np.array_equal(by_itself.contributions, beside.contributions)


def test_noise_on_a_continuation_changes_nothing(pair: Pair) -> None:
    """Its embeddings are looked up, not given: whatever a method adds to them, they stay what they are."""
    row = pair.row(PROMPT, pair.target())
    encoded = pair.model.seen(row[None]).reshape(1, *pair.model.shape)
    noisy = encoded.copy()
    count = int((row >= 0).sum()) - len(pair.target().tokens)
    noisy[:, count:, :-1] += 1.0
    twin = pair.model.twin
    with torch.no_grad():
        plain, other = (twin(torch.from_numpy(each.astype(np.float32))).numpy() for each in (encoded, noisy))
    assert np.array_equal(plain, other)


def test_rows_are_computed_at_their_own_length(pair: Pair) -> None:
    assert [cut.manifest.inputs.shape for cut in pair.model.cut] == [(16,), (24,), (32,)]
    assert pair.model.parity < 1e-5


def test_inputs_of_another_kind_are_refused(pair: Pair, tmp_path: Path) -> None:
    version = tmp_path / pair.folder.parent.name / "1"
    version.mkdir(parents=True)
    for file in pair.folder.iterdir():
        (version / file.name).write_bytes(file.read_bytes())
    text = (version / "manifest.yaml").read_text()
    padding = pair.inputs.mask + 1
    tokens = text.replace("kind: prompt", f"kind: tokens\n  padding: {padding}\n  side: {{attention_mask: mask}}")
    (version / "manifest.yaml").write_text(tokens)
    with pytest.raises(CatalogError, match="outputs of kind tokens are those of prompts"):
        load_model(version, CPU)
    classes = tokens[: tokens.index("outputs:")] + "outputs: {labels: [a, b], link: softmax}\n"
    classes += tokens[tokens.index("defaults:") :]
    (version / "manifest.yaml").write_text(classes)
    with pytest.raises(CatalogError, match="the network continues texts: its inputs are of kind prompt, not tokens"):
        load_model(version, CPU)


def test_a_prompt_leaves_room_for_what_follows(pair: Pair) -> None:
    from service.errors import InvalidRequest

    with pytest.raises(InvalidRequest, match=f"the prompt has {LENGTH} tokens, and the model takes {LENGTH} together"):
        pair.inputs.read([5] * LENGTH)
    almost = pair.inputs.read([5] * (LENGTH - 1)).values
    assert pair.inputs.with_target(almost, None)[-1] >= pair.inputs.vocabulary
    with pytest.raises(InvalidRequest, match=f"{LENGTH - 1} tokens and what follows 2; the model takes {LENGTH}"):
        pair.inputs.with_target(almost, Continuation((1, 2)))
