"""Sweeps on a real Kubeflow Pipelines, by the command line; run with ``make e2e-kfp``.

Kubeflow is the one that the command line finds: by KF_PIPELINES_ENDPOINT, else through KUBECONFIG
or ~/.kube/config. It needs the images and the manifests of docs/cluster.md, and nothing else.

TAYLORGLO_E2E_IMAGE is the image of the tasks, unless it is ``taylorglo:VERSION``;
TAYLORGLO_E2E_NAMESPACE the namespace of the runs, unless it is ``kubeflow``; and
TAYLORGLO_E2E_ACCOUNT the service account that submits from a pod, unless it is
``taylorglo-submitter``. If the logs of pods cannot be read from here, the sweeps' results are
compared by MLflow, if MLFLOW_TRACKING_URI leads to it from here.

The cases run side by side, in about 20 minutes. In the end, also after Ctrl-C, all that they made
in Kubeflow is removed, and a table tells what was seen.
"""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from calls import say
from installation import Installation
from kfp_cases import CASES

from taylorglo.errors import TaylorgloError, one_line

pytestmark = [pytest.mark.kfp, pytest.mark.timeout(3 * 3600)]

AT_ONCE = 4  # cases; a cluster may be a laptop


@pytest.fixture(scope="module")
def cases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """The selected cases, which run side by side."""
    try:
        installation = Installation(tmp_path_factory.mktemp("kfp"))
    except TaylorgloError as error:
        pytest.skip(f"needs Kubeflow Pipelines: {one_line(error)}")
    if lacking := installation.missing():
        pytest.skip(lacking)
    for line in installation.described():
        say(line)
    chosen = [i.callspec.params["case"] for i in request.session.items if i.path == request.path]
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        yield {
            name: pool.submit(installation.attempt, name, *CASES[name])
            for name in CASES
            if name in chosen
        }
    finally:
        installation.commands.end()
        pool.shutdown(cancel_futures=True)
        say("all that was created is removed from Kubeflow; this takes a minute")
        problem = installation.remove(chosen)
        print_summary(installation, chosen, problem)
    assert not problem, f"not everything could be removed: {problem}"


def print_summary(installation: Installation, chosen: list[str], problem: str) -> None:
    """Print what was seen, and what is left."""
    names = f"{installation.prefix}-*"
    lines = [
        "",
        *installation.table(),
        "",
        f"left: in the study's database the studies {names}; in the store {names}/ and their new",
        f"files in evaluations/; in MLflow the experiments and the models {names}; in Kubeflow's",
        f"own store the artifacts of the pipelines taylorglo-{names}",
    ]
    if problem:
        lines.append(f"left in Kubeflow, because it could not be removed: {problem}")
    for line in lines:
        say(line)


@pytest.mark.parametrize("case", CASES)
def test_on_kubeflow(cases: dict[str, Future[None]], case: str) -> None:
    cases[case].result()
