"""Passes through encoders are in full float32, and the user's settings come back."""

import gc
import signal
import threading

import numpy as np
import pytest
import torch
from torch import nn

from skvaecert._precision import full_float32
from skvaecert.wrappers import TrainedEncoder

HAS_PARTS = hasattr(torch.backends.cudnn, "conv")


def set_precision(precision):
    """Allow fewer bits, or not, by either of torch's ways."""
    if precision == "by part":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        torch.backends.mkldnn.conv.fp32_precision = "bf16"
    elif precision == "for all":
        torch.backends.fp32_precision = "tf32"
    else:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = precision != "highest"


def settings():
    """Return the settings that the user sees, by each of torch's functions."""
    if not HAS_PARTS:
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    cuda, cudnn, mkldnn = (
        getattr(torch.backends, name) for name in ("cuda", "cudnn", "mkldnn")
    )
    parts = cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn
    return tuple(part.fp32_precision for part in parts)


EXACT = ("ieee",) * 6 if HAS_PARTS else ("highest", False)


@pytest.fixture(
    params=["highest", "high", "medium", *(["by part", "for all"] * HAS_PARTS)]
)
def before(request):
    set_precision(request.param)
    yield settings()
    if HAS_PARTS:
        torch.backends.fp32_precision = "none"
        torch.backends.mkldnn.conv.fp32_precision = "none"
    set_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


def test_inside_all_is_exact_and_afterwards_as_before(before):
    assert before != EXACT
    with full_float32():
        assert settings() == EXACT
        with full_float32():
            pass
        assert settings() == EXACT
    assert settings() == before
    with pytest.raises(KeyError), full_float32():
        raise KeyError
    assert settings() == before


@pytest.mark.skipif(not HAS_PARTS, reason="torch before 2.9")
def test_parts_go_on_to_follow_the_setting_for_all():
    for setting in ("tf32", "ieee", "none"):
        torch.backends.fp32_precision = setting
        with full_float32():
            pass
        assert torch.backends.mkldnn.conv.fp32_precision == setting


def test_the_last_of_two_threads_puts_settings_back():
    before, first_left = settings(), threading.Event()

    def second():
        with full_float32():
            entered.set()
            first_left.wait()
            seen.append(settings())

    entered, seen = threading.Event(), []
    thread = threading.Thread(target=second)
    with full_float32():
        thread.start()
        entered.wait()
    first_left.set()
    thread.join()
    assert seen == [EXACT]
    assert settings() == before


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs setitimer")
@pytest.mark.parametrize("before", ["high"], indirect=True)
def test_ctrl_c_at_any_moment(before):
    def interrupt(*_):
        raise KeyboardInterrupt

    def blocks(seconds):
        signal.setitimer(signal.ITIMER_REAL, seconds)
        while True:
            with full_float32():
                seen.append(settings())

    seen, old = [], signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(200):
            with pytest.raises(KeyboardInterrupt):
                blocks(0.001 + i * 1e-6)
            gc.collect(0)
            assert settings() == before
    finally:
        signal.signal(signal.SIGALRM, old)
    assert len(seen) > 200
    assert set(seen) == {EXACT}


class Noting(nn.Linear):
    """Records the settings under which it is called."""

    def forward(self, x):
        self.seen = settings()
        return super().forward(x)


def test_encoders_are_passed_through_in_full_float32(before, vae, blobs):
    module = Noting(6, 4)
    TrainedEncoder(module).transform(blobs)
    assert module.seen == EXACT
    vae.set_params(encoder=lambda n, d: Noting(n, 2 * d), max_epochs=1).fit(blobs)
    encoder = vae.net_.module_.encoder
    for passed in (vae.transform, vae.encode, vae.score):
        encoder.seen = None
        passed(blobs)
        assert encoder.seen == EXACT
    # The twin: what trains it has the user's settings.
    with torch.no_grad():
        encoder(torch.from_numpy(blobs.astype(np.float32)))
    assert encoder.seen == before == settings()
