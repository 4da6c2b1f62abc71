"""Every model of the comparison trains from the command line, and scores the same once saved and read back."""

import itertools
import re

import pytest
import torch
from conftest import read_events, write_dataset
from recbole.quick_start import load_data_and_model

from recbole_adrrec import cli
from recbole_adrrec.layers.refinement import REFINEMENTS
from recbole_adrrec.models.awrsr import BACKBONES

SMALL = {
    "epochs": 2,
    "hidden_size": 8,
    "inner_size": 8,
    "n_layers": 1,
    "MAX_ITEM_LIST_LENGTH": 10,
    "train_batch_size": 1024,
    "eval_batch_size": 256,
    "learning_rate": 0.01,
    "show_progress": "false",
    "metrics": "[NDCG]",
    "topk": "[10]",
    "valid_metric": "NDCG@10",
    "load_col": "{inter: [user_id, item_id, timestamp]}",
    "user_inter_num_interval": "~",
    "item_inter_num_interval": "~",
    "state": "warning",
}

RUNS = {
    "ADRRec": {"model": "ADRRec", "n_layers": 2},
    "ADRRec, heads": {
        "model": "ADRRec",
        "mixture": "heads",
        "relative_kernels": ["sinusoid", "log1p"],
        "time_unit": 3600,
        "item_head": "projected",
    },
    "MEANTIME": {"model": "MEANTIME"},
    "TiSASRec": {"model": "TiSASRec", "time_span": 20},
    "TiSASRec, BCE": {"model": "TiSASRec", "time_span": 20, "loss_type": "BCE"},
    "TiSASRec, published": {"model": "TiSASRec", "time_span": 20, "published_padding_attention": "true"},
    "HSTU": {"model": "HSTU"},
    "HSTU, query time": {
        **{"model": "HSTU", "use_query_time": "true", "temperature": 0.1},
        **{"loss_type": "sampled_softmax", "negatives": "shared", "n_negatives": 16},
    },
    "STOSA": {"model": "STOSA", "n_heads": 2},
    "STOSA, CE": {"model": "STOSA", "n_heads": 2, "loss_type": "CE", "published_mean_bypass": "true"},
    "SASRec": {"model": "SASRec"},
    "BERT4Rec": {"model": "BERT4Rec"},
    "gBCE": {"model": "ADRRec", "loss_type": "gBCE", "n_negatives": 5},
    "sampled_softmax, prefixes": {
        "model": "AWRSR",
        "loss_type": "sampled_softmax",
        "n_negatives": 3,
        "train_rows": "prefix",
    },
    "shared negatives, trend": {
        "model": "ADRRec",
        "loss_type": "sampled_softmax",
        "negatives": "shared",
        "n_negatives": 64,
        "label_smoothing": 0.1,
        "trend_rank": 4,
    },
    **{
        f"AWRSR, {refinement}, {backbone}": {
            "model": "AWRSR",
            "refinement": refinement,
            "backbone": backbone,
            "time_span": 20,
        }
        for refinement, backbone in itertools.product(["none", *REFINEMENTS], BACKBONES)
    },
}


@pytest.fixture(scope="module")
def hundred_users(tmp_path_factory):
    """A folder with the data set ``hundred``: 100 users of ml-100k, the oldest 30 events of each at most."""
    head, rows = read_events()
    users = list(dict.fromkeys(row[0] for row in rows))[:100]
    kept = []
    for user in users:
        own = sorted((row for row in rows if row[0] == user), key=lambda row: float(row[3]))
        kept += own[:30]
    folder = tmp_path_factory.mktemp("hundred")
    write_dataset(folder, "hundred", head, kept)
    return folder


def train(given, dataset, folder, monkeypatch, capsys):
    """Run the command line; the file that it saved."""
    monkeypatch.chdir(folder)
    arguments = {**given, "dataset": dataset, "checkpoint_dir": folder / "saved", "checkpoint_last": 0}
    code = cli.main([f"--{name}={value}" for name, value in arguments.items()])
    assert code == 0, capsys.readouterr().err
    (file,) = (folder / "saved").iterdir()
    return file


def scores(model, loader):
    """Scores of the first batch's users for all items."""
    batch = next(iter(loader))[0].to(next(model.parameters()).device)
    model.eval()
    with torch.no_grad():
        return model.full_sort_predict(batch).view(len(batch), -1)


@pytest.mark.parametrize("name", RUNS)
def test_trains_saves_reloads_and_scores_the_same(name, hundred_users, tmp_path, monkeypatch, capsys):
    trained = []
    load_state = torch.nn.Module.load_state_dict

    def remember(module, *args, **kwargs):
        result = load_state(module, *args, **kwargs)
        trained.append(module)
        return result

    monkeypatch.setattr(torch.nn.Module, "load_state_dict", remember)
    given = {**SMALL, "data_path": hundred_users, **RUNS[name]}
    file = train(given, "hundred", tmp_path, monkeypatch, capsys)
    assert "ndcg@10" in capsys.readouterr().out.lower()
    model = trained[-1]  # RecBole puts the best epoch's weights back before the test
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    _, loaded, _, _, _, test = load_data_and_model(str(file))
    assert type(loaded).__name__ == RUNS[name]["model"]
    assert loaded is not model
    before, after = scores(model, test), scores(loaded, test)
    assert before.isfinite().all()
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    assert before.std() > 0
    if hasattr(loaded, "explain"):
        one = next(iter(test))[0][:1]
        told = loaded.explain(one)
        shown = told.items[told.items < loaded.n_items].tolist()  # a mask token takes a full history's oldest place
        assert one["item_id_list"][0, : one["item_length"]].tolist()[-len(shown) :] == shown
        assert told.plain.shape == told.refined.shape == (*told.plain.shape[:2], len(told.items), len(told.times))


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        {"model": "TiSASRec"},
        {"model": "STOSA"},
        *({"model": "AWRSR", "refinement": "simple", "backbone": backbone} for backbone in BACKBONES),
        {"model": "AWRSR", "refinement": "value", "refinement_value_map": "true"},
        {"model": "AWRSR", "refinement": "additive"},
        {"model": "AWRSR", "refinement": "stochastic", "backbone": "stosa"},
    ],
    ids=lambda given: "-".join(map(str, given.values())),
)
def test_learns_on_the_whole_of_ml_100k(given, tmp_path, monkeypatch, capsys):
    """Two epochs beat a random order by far."""
    file = train({"epochs": 2, "show_progress": "false", **given}, "ml-100k", tmp_path, monkeypatch, capsys)
    assert file.is_file()
    found = re.search(r"^NDCG\s+\S+\s+(\S+)", capsys.readouterr().out, re.MULTILINE)  # at 5, 10, 20
    assert float(found[1]) > 0.008
