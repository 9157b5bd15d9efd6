"""Fragility: how much of an explanation's ranking is left at inputs near by for which the model answers the same.

Ghorbani, Abid and Zou, "Interpretation of neural networks is fragile", AAAI 2019. Over the inputs x + r of a ball, each
|r_i| at most `radius` times the range of its input, at which the prediction keeps its label and its probability within
`bound` (of what is no probability: the explained output within `bound` times its change from the baseline):

    rank_stability    the lowest Spearman correlation of |A(x + r)| with |A(x)|
    top_stability     the smallest share of the `top` largest components of x that are among those of x + r

Both are of the worst that was found, so they are upper bounds: more samples and steps only lower them. Two searches:

- `samples` draws: a random sign for each input, and a random length of all (the paper's random sign perturbation);
- `steps` of gradient ascent, as in the paper's top-k attack: of the mean size of all other components less that of the
  top ones. The attributions' own gradient is that of integrated gradients, or of plain gradients, whichever step leads
  to more; every step is then explained by the method itself. Second derivatives are differences of gradients over the
  ball, which see the bends of a ReLU network where its Hessian is zero.

A row that the prediction does not keep is drawn half the way towards x, up to six times. Only inputs move that can take
any value in their range: no categories, whole numbers, special tokens. Of tokens it is the embeddings that move.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from service.catalog.inputs.removal import Mask
from service.domain import Floats
from service.faithfulness.spec import Better, MetricSpec
from service.faithfulness.subject import Measured, Measuring, Subject, no_figure
from service.methods.questions import Outputs, Steps, evaluated, outputs_at
from service.methods.spec import Facts, Number
from service.numerics.quadrature import gauss_legendre
from service.numerics.ranking import largest, rank_correlation, top_count, top_share

RADIUS = 0.02
"""Of the usual ball, as a share of each input's range."""
BOUND = 0.05
"""How far the probability usually may move."""
TOP = 5
"""So many of the largest components are usually compared."""
HALVINGS = 7
"""How often a row is tried: as it was drawn, then at half the way, and so on."""
NODES = 16
"""Of the path along which the gradient of integrated gradients is taken."""
STEPS_ACROSS = 4
"""So many steps of the gradient search lead from the middle of the ball to its side."""
PROPOSALS = 2
UNRANKED = "the attributions are all of one size, so there is no ranking"
FIXED = "no input can take another value near its own"
NONE_KEPT = "at no input that was tried does the prediction keep its label and its probability"


def rank_stability(subject: Subject) -> Measuring:
    """See the module's docstring."""
    return _lowest(subject, rank_correlation)


def top_stability(subject: Subject) -> Measuring:
    """See the module's docstring."""
    count = int(subject.number("top"))
    return _lowest(subject, lambda own, other: top_share(own, other, count))


def _lowest(subject: Subject, likeness: Callable[[Floats, Floats], float]) -> Measuring:
    """The lowest likeness of the sizes of attributions at x and at what was found near it."""
    own = np.abs(subject.judged)
    if len(own) < 2 or np.ptp(own) == 0:
        return no_figure(UNRANKED)
    ball = _Ball.around(subject)
    if not ball.reach.any():
        return no_figure(FIXED)
    searched = "ball", subject.measure.options
    if searched not in subject.known:
        subject.known[searched] = yield from _search(subject, ball)
    found = subject.known[searched]
    likenesses = [likeness(own, other) for other in found]
    if not likenesses:
        return no_figure(NONE_KEPT)
    return Measured(float(np.nanmin(likenesses)) if np.isfinite(likenesses).any() else 0.0)


@dataclass(frozen=True, slots=True)
class _Ball:
    """The inputs near the explained one: each of them at most `reach` [inputs] away from it, and within its range."""

    subject: Subject
    reach: Floats

    @classmethod
    def around(cls, subject: Subject) -> _Ball:
        problem = subject.problem
        moves = subject.inputs.continuous(subject.row).astype(np.float64)
        return cls(subject, problem.per_input(moves) * subject.number("radius") * (problem.high - problem.low))

    def inside(self, inputs: Floats) -> Floats:
        """The nearest inputs [n, inputs] in the ball, of which the range is a part."""
        problem = self.subject.problem
        at, reach = problem.input, self.reach
        low, high = np.minimum(problem.low, at), np.maximum(problem.high, at)
        nearest: Floats = np.clip(inputs, np.maximum(at - reach, low), np.minimum(at + reach, high))
        return nearest

    def kept(self, inputs: Floats, whole: Outputs) -> Steps[list[tuple[Floats, float]]]:
        """Of the inputs [n, inputs] those with which the prediction stays, drawn nearer where it would not, each with
        the explained output; `whole` are the outputs at the explained input."""
        problem, found = self.subject.problem, list[tuple[Floats, float]]()
        away = self.inside(inputs) - problem.input
        for _ in range(HALVINGS):
            if not len(away):
                break
            rows = problem.input + away
            outputs = yield from outputs_at(rows)
            stays = self._stays(whole, outputs)
            found += zip(rows[stays], problem.read(outputs)[stays].tolist(), strict=True)
            away = away[~stays] / 2
        return found

    def _stays(self, whole: Outputs, outputs: Outputs) -> Mask:
        """At which of the rows the prediction is as at the input, [n]."""
        subject, problem = self.subject, self.subject.problem
        space, bound = problem.output_space, subject.number("bound")
        labels = [subject.outputs.labels_of(values, space) for values in (whole[space][0], *outputs[space])]
        if subject.has_probabilities:
            moved = subject.probability(outputs) - subject.probability(whole)
        else:
            change = max(abs(problem.output - problem.center_output), problem.floor)
            moved = (problem.read(outputs) - problem.read(whole)) / change
        same: Mask = np.array([label == labels[0] for label in labels[1:]]) & (np.abs(moved) <= bound)
        return same

    def explained(self, input: Floats, output: float) -> Steps[Floats]:
        """The sizes of the attributions that can be judged at an input, by the method of the subject."""
        problem = replace(self.subject.problem, input=input, output=output)
        attribution = yield from self.subject.attribute(problem)
        sizes: Floats = np.abs(problem.components_of(attribution.values))[self.subject.removable]
        return sizes


def _search(subject: Subject, ball: _Ball) -> Steps[Floats]:
    """The sizes of attributions [n, components] at inputs of the ball."""
    generator, problem = np.random.default_rng(subject.problem.seed), subject.problem
    goal, found = _goal(subject), list[Floats]()
    samples = int(subject.number("samples"))
    lengths, signs = generator.random((samples, 1)), generator.choice([-1.0, 1.0], (samples, problem.input.size))
    whole = yield from outputs_at(problem.input[None])
    drawn = yield from ball.kept(problem.input + ball.reach * lengths * signs, whole)
    for input, output in drawn:
        found.append((yield from ball.explained(input, output)))
    weights, at = np.zeros_like(subject.values), problem.input
    weights[subject.removable] = goal * np.sign(subject.judged)
    for _ in range(int(subject.number("steps"))):
        slopes = yield from _slopes(subject, at, problem.per_input(weights))
        proposed = yield from ball.kept(at + ball.reach / STEPS_ACROSS * np.sign(slopes), whole)
        if not proposed:
            break
        explained = []
        for input, output in proposed:
            explained.append((yield from ball.explained(input, output)))
        found += explained
        at, _ = proposed[int(np.argmax(np.array(explained) @ goal))]
    return np.array(found)


def _goal(subject: Subject) -> Floats:
    """What the search goes up, as weights [components] of sizes: the mean of the others less that of the top ones."""
    sizes = np.abs(subject.judged)
    count = top_count(len(sizes), int(subject.number("top")))
    is_top = np.isin(np.arange(len(sizes)), largest(sizes, count))
    return np.where(is_top, -1.0 / count, 1.0 / (len(sizes) - count))


def _slopes(subject: Subject, at: Floats, weights: Floats) -> Steps[Floats]:
    """The gradients [2, inputs] at an input of the weighted sum of its integrated gradients, and of its gradients.

    With d = x - x' and g(alpha) the gradient at x' + alpha d, that of sum_i w_i d_i int g_i is w int g + int alpha H (w
    d), and that of sum_i w_i g_i is H w; H v is a difference of gradients on both sides.
    """
    problem, rule = subject.problem, gauss_legendre(NODES)
    direction, reach = at - problem.center, subject.number("radius") * (problem.high - problem.low)
    along, own = _scaled(weights * direction, reach), _scaled(weights, reach)
    middles = np.vstack([problem.center + rule.nodes[:, None] * direction, at])
    aside = np.vstack([np.tile(along.vector, (NODES, 1)), own.vector])
    answer = yield from evaluated(problem.rows(np.concatenate([middles + aside, middles - aside])))
    after, before = np.split(answer.contributions, 2)
    products = (after - before) / 2
    path = weights * (rule.weights @ (after + before)[:NODES] / 2)
    path = path + (rule.weights * rule.nodes) @ products[:NODES] / along.scale
    return np.stack([path, products[NODES] / own.scale])


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A vector times `scale`, so that it just stays within the ball."""

    vector: Floats
    scale: float


def _scaled(vector: Floats, reach: Floats) -> _Scaled:
    shares = np.abs(vector)[reach > 0] / reach[reach > 0]
    scale = 1.0 / float(shares.max()) if shares.any() else 1.0
    return _Scaled(vector * scale, scale)


def _explained(facts: Facts) -> int:
    return int(facts.number("samples") + PROPOSALS * facts.number("steps"))


def _rows(facts: Facts) -> int:
    return int(_explained(facts) + 2 * (NODES + 1) * facts.number("steps"))


OPTIONS = (
    Number("radius", RADIUS, 0.0001, 1.0, "the largest change of an input, as a share of its range"),
    Number("bound", BOUND, 0.0001, 1.0, "the largest change of the label's probability; else a share of the change"),
    Number("samples", 8, 0, 1000, "random inputs in the ball, each of which is explained"),
    Number("steps", 8, 0, 1000, "of the gradient search, of which each explains two inputs"),
    Number("top", TOP, 1, 1000, "the largest components, whose place the search attacks"),
)
RANK_STABILITY = MetricSpec(
    name="rank_stability",
    measure=rank_stability,
    better=Better.HIGHER,
    description="the lowest rank correlation of the attributions with those near by, where the prediction is the same",
    citation="Ghorbani, Abid and Zou, AAAI 2019",
    options=OPTIONS,
    rows=_rows,
    explains=_explained,
)
TOP_STABILITY = MetricSpec(
    name="top_stability",
    measure=top_stability,
    better=Better.HIGHER,
    description="the smallest share of the largest components that stay the largest near by, likewise",
    citation=RANK_STABILITY.citation,
    options=OPTIONS,
    rows=_rows,
    explains=_explained,
)
