"""Apple's GPU, pretended: what is chosen, and what is refused. Nothing is computed on it."""

import importlib.util

import pytest
import torch

from rlkd_lab import doctor
from rlkd_lab.models import default_device, loading
from rlkd_lab.study.pools import workers_here
from rlkd_lab.training import make_config
from rlkd_lab.training.config_checks import check_device
from rlkd_lab.training.environment import describe_environment


@pytest.fixture
def apple(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("RLKD_DEVICE", raising=False)


def test_it_is_taken_by_itself_in_float32_unless_another_device_is_named(apple, monkeypatch):
    assert default_device() == torch.device("mps")
    assert loading.compute_dtype(default_device()) == torch.float32
    assert workers_here() == 1
    assert describe_environment(default_device())["device"].startswith("Apple's GPU, mps (")
    monkeypatch.setattr(doctor, "_four_bit", lambda device: (True, ""))
    assert any(
        "not run by us" in text and "RLKD_DEVICE=cpu" in text for _, text in doctor.examine()
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert default_device().type == "cuda"
    monkeypatch.setenv("RLKD_DEVICE", "cpu")
    assert default_device() == torch.device("cpu")


def test_4_bit_is_left_to_a_bitsandbytes_that_has_it_there(apple, make_model, monkeypatch):
    assert loading._nf4(default_device()).bnb_4bit_compute_dtype == torch.float32
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"no 4-bit layers for Apple's GPU.*--set quant=none"):
        loading.load_policy(make_model())
    assert importlib.util.find_spec("bitsandbytes.backends.mps")  # of the release that is pinned


@pytest.mark.parametrize(
    ("method", "settings", "processes", "says"),
    [
        ("grpo", {"optimizer": "adamw_8bit"}, 1, "8-bit optimizer of bitsandbytes: use --set"),
        ("opsa", {}, 1, "no float64, which push_share"),
        ("grpo", {}, 2, "between processes: start one"),
    ],
)
def test_what_it_lacks_is_refused_in_words(method, settings, processes, says):
    config = make_config(method, settings=settings)
    for device in ("cpu", "cuda"):
        check_device(config, device, processes)
    with pytest.raises(ValueError, match=says):
        check_device(config, "mps", processes)
