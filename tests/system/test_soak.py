"""A minute of random faults. `make soak` runs more of it; SEED=… repeats a run."""

from __future__ import annotations

import os
import pathlib
import random

import pytest

from tests.system.soak import SoakError, soak


def test_a_minute_of_random_faults(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("SEED") or random.randrange(10**6))
    try:
        for summary in soak(tmp_path, 1, seed):
            with capsys.disabled():
                print(f"\n{summary}")
    except SoakError as error:
        pytest.fail(str(error), pytrace=False)
