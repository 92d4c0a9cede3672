"""The language model and every verb on the device that stands for a GPU (`support/far.py`)."""

import pytest
from far import CAN_BE
from far_process import passed_far

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not CAN_BE, reason="this torch cannot be given a device")]


def test_the_language_model_and_its_edits(tmp_path):
    passed_far(tmp_path, "test_gpu_model.py")


def test_every_verb(tmp_path):
    passed_far(tmp_path, "test_gpu_verbs.py")
