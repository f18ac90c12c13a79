"""The stages that commands share."""

import types

from bigjax.parallel import hosts
from bigjax.train import stages


def test_load_data_reads_only_the_named_splits_and_compares_all_hosts(monkeypatch):
    read, compared = [], []
    monkeypatch.setattr(hosts, "check_equal", lambda values, advice: compared.append(values))

    def load_data(log, tokenizer=None, splits=("train", "valid", "test")):
        read.append(splits)
        return types.SimpleNamespace(fingerprint="abc", split=None, tokenizer=None)

    task = types.SimpleNamespace(load_data=load_data)
    for splits in (None, {"valid"}):
        assert stages.load_data(task, print, None, splits).fingerprint == "abc"
    assert read == [("train", "valid", "test"), {"valid"}]
    assert [list(values.values()) for values in compared] == [["abc"], ["abc"]]
