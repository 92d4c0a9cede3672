"""Steps, dictionaries and edits on the device that stands for a GPU (`support/far.py`)."""

import pytest
from far import CAN_BE
from far_process import passed_far

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_BE, reason="this torch cannot be given a device")]


def test_steps_dictionaries_and_edits(tmp_path):
    passed_far(tmp_path, "test_gpu.py", "sae_core/data/test_activations.py")
