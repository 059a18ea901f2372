"""Every pair of pruner, optimiser, wrapper, host, dtype and mask storage trains as the contract says."""

import jax
import pytest

import jaxprune as jp
from tests.contract import helpers as h

CASES = h.covering(
    {
        "pruner": list(h.PRUNERS),
        "optimiser": [name for name in h.OPTIMISERS if name != "adagrad"],
        "place": [place for place in h.PLACES if place != "bare"],
        "host": h.HOSTS,
        "dtype": list(h.DTYPES),
        "packed": [False, True],
    },
    h.Case,
)


def name(case: h.Case) -> str:
    return "-".join([*case[:5], "packed" if case.packed else "bytes"])


@pytest.mark.parametrize("case", CASES, ids=name)
def test_pair(case: h.Case) -> None:
    params = h.initial_params(h.DTYPES[case.dtype])
    run = h.TRAIN[case.host](h.build(case), params, case.steps)
    masks = jp.get_masks(run.state, run.params)

    assert run.traces == 1
    assert h.avals(run.params) == h.avals(params)
    assert h.avals(run.state) == h.avals(run.first_state)
    assert jax.tree.structure(run.state) == jax.tree.structure(run.first_state)
    if case.pruner not in h.NO_TARGET:
        h.assert_target(masks)
    h.assert_zeros(jp.sparse_params(run.params, run.state), masks)
    if case.pruner in h.ZEROED:
        h.assert_zeros(run.params, masks)
        jp.check_masks(run.params, run.state)
