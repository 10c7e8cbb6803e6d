"""The view of the table of runs: set once, and never in the way of a training."""

from types import SimpleNamespace

import pytest
from mlflow.exceptions import MlflowException

from fieldguide.tracking.store import NOTE_TAG, VIEW_TAG, _describe


class Client:
    """Of MLflow, with one experiment; refuses changes if it is told to."""

    def __init__(self, tags: dict[str, str], refuses: bool = False) -> None:
        self.tags, self.refuses, self.calls = tags, refuses, 0

    def get_experiment(self, experiment_id: str) -> SimpleNamespace:
        return SimpleNamespace(tags=dict(self.tags))

    def set_experiment_tag(self, experiment_id: str, name: str, value: str) -> None:
        self.calls += 1
        if self.refuses:
            raise MlflowException("Permission denied")
        self.tags[name] = value


@pytest.mark.parametrize("before", [{}, {NOTE_TAG: "ours"}, {VIEW_TAG: "ours"}, {NOTE_TAG: "ours", VIEW_TAG: "ours"}])
def test_what_a_user_wrote_stays_and_what_is_there_is_not_written_again(before: dict[str, str]) -> None:
    client = Client(dict(before))
    _describe(client, "7")
    assert client.tags | before == client.tags and set(client.tags) == {NOTE_TAG, VIEW_TAG}
    assert client.calls == 2 - len(before)
    _describe(client, "7")
    assert client.calls == 2 - len(before)


def test_a_user_who_may_not_change_the_experiment_goes_on_without() -> None:
    client = Client({}, refuses=True)
    _describe(client, "7")
    assert client.tags == {} and client.calls == 1
