"""Tails placed by a dynamic programme, against a run whose best steps are known."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from research.sweeps.nested_study import shortest_path, student_paths

SIGMAS = np.array([8.0, 6.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.0], np.float32)
TURN = 3.0


def predicted(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """A model whose prediction jumps once, at sigma 3: straight before and straight after."""
    del x
    return torch.full((1, 1, 2, 2), 1.0 if sigma > TURN else -1.0)


def dense_run() -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, trace = torch.full((1, 1, 2, 2), 9.0), []
    for sigma, after in pairwise(SIGMAS):
        d = predicted(x, float(sigma))
        trace.append((x, d))
        x = d + (x - d) * float(after / sigma)
    return [*trace, (x, x)]


@pytest.mark.parametrize("name", ["GITS", "OptimalSteps"])
def test_two_steps_meet_where_the_prediction_turns(name):
    trace = dense_run()
    turn = int(np.flatnonzero(SIGMAS == TURN)[0])
    if name == "GITS":
        path = shortest_path(SIGMAS, trace, 0, 2)
    else:
        path = student_paths(SIGMAS, trace, 0, 2, predicted)[2]
    assert path == [0, turn, len(SIGMAS) - 1]


def test_every_step_is_the_dense_run_and_one_step_is_worst():
    rng = np.random.default_rng(1)
    field = {float(s): torch.from_numpy(rng.normal(size=(1, 1, 2, 2)).astype(np.float32)) for s in SIGMAS}

    def wild(x: torch.Tensor, sigma: float) -> torch.Tensor:
        return 0.3 * torch.tanh(x) + field[sigma]

    x, trace = torch.ones(1, 1, 2, 2), []
    for sigma, after in pairwise(SIGMAS):
        trace.append((x, wild(x, float(sigma))))
        x = trace[-1][1] + (x - trace[-1][1]) * float(after / sigma)
    trace.append((x, x))

    def end(path: list[int]) -> torch.Tensor:
        y = trace[0][0]
        for a, b in pairwise(path):
            d = wild(y, float(SIGMAS[a]))
            y = d + (y - d) * float(SIGMAS[b] / SIGMAS[a])
        return y

    paths = student_paths(SIGMAS, trace, 0, len(SIGMAS) - 1, wild)
    assert all(len(path) == k + 1 and path[0] == 0 and path[-1] == len(SIGMAS) - 1 for k, path in paths.items())
    assert torch.allclose(end(paths[len(SIGMAS) - 1]), trace[-1][0], atol=1e-6)  # every step is the dense run itself
    errors = [float((end(path) - trace[-1][0]).square().mean()) for path in paths.values()]
    assert errors[0] == max(errors)
